"""Lab 10, tensor cores.

lab.py                  the tasks with their known mistakes
fragment_cases.py       what tasks 10.1 to 10.4 run: numbers in registers and in shared memory
kernel_cases.py         what tasks 10.5 to 10.7 run: copies, the whole kernel, an engine with it
mistakes.py             the known mistakes of tasks 10.1 to 10.4
kernel_mistakes.py      those of tasks 10.5 and 10.6
lab10.cu                the finished file, with sections to fill in
lab10_check.cu          kernels around single functions, for the checks
"""
