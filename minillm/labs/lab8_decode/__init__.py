"""Lab 8, paged decode attention in CUDA.

lab.py                  the tasks with their known mistakes
kernel_cases.py         what the tasks run
lab8.cu                 the finished file, with sections to fill in
lab8_check.cu           kernels around single functions, for the checks
"""
