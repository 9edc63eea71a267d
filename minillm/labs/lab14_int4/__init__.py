"""Lab 14, a product with weights of 4 bits.

lab.py                  the tasks with their known mistakes
group_cases.py          what tasks 14.1 to 14.4 run: one group of 16 outputs
matmul_cases.py         what tasks 14.5 and 14.6 run: several rows, the whole product on a CPU
kernel_cases.py         what tasks 14.7 to 14.9 run: a warp, the CUDA kernel, an engine with both
group_mistakes.py       the known mistakes of tasks 14.1 to 14.4
matmul_mistakes.py      those of tasks 14.5 and 14.6
kernel_mistakes.py      those of tasks 14.7 and 14.8
lab14.cu                the finished file, with sections to fill in
lab14_check.cu          kernels around single functions, for the checks
"""
