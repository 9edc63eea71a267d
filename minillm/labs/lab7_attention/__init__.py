"""Lab 7, tiled attention in CUDA.

lab.py                  the tasks with their known mistakes
kernel_cases.py         what the tasks run
lab7.cu                 the finished file, with sections to fill in
lab7_check.cu           kernels around single functions, for the checks
"""
