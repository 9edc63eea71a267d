"""The parts that all labs share: tasks, the check of a student's file, and an engine to run it in.

definition           lab.py            lab, task, part, case, mistake
                     registry.py       finds the labs
files for students   skeleton.py       the engine's source -> skeleton
                     workspace.py      the student's folder
                     earlier.py        files written for an earlier version of a lab
judging              judge.py          one task: cases, differences, diagnosis
                     compare.py        the first difference of two answers
                     result.py         a task's result
                     report.py         all results, as a table and as JSON
running              supervise.py      starts child processes and enforces their limits
                     child.py          loads the student's file and judges it
labs in CUDA         cuda_text.py      the sections of a .cu file
                     cuda_kernels.py   compiles them for the simulator and runs them
                     cuda_errors.py    the simulator's errors with the lines of the student's file
                     cuda_cost.py      what a kernel moved, beside what is needed
                     cuda_lab.py       lab and part
                     cuda_judge.py     judges one section
helpers of cases     tiny_model.py     a small random model
                     serving.py        runs the engine and records every step
                     memory_state.py   block tables and their pool as a value
                     student_tables.py an engine whose sequences have the file's block tables
"""
