"""What every lab needs: tasks and their parts, the check of a student's file, and an engine to try it in.

what a lab is        lab.py            lab, task, part, case, mistake
                     registry.py       finds the labs
what is handed out   skeleton.py       the engine's source -> skeleton
                     workspace.py      the student's folder
                     earlier.py        files written for an earlier version of a lab
judging              judge.py          one task: cases, differences, diagnosis
                     compare.py        where two answers part
                     result.py         a task's result
                     report.py         all results, as a table and as JSON
running              supervise.py      starts child processes and keeps them in bounds
                     child.py          loads the student's file and judges it
labs in CUDA         cuda_text.py      the sections of a .cu file
                     cuda_kernels.py   compiled for the simulator, and run
                     cuda_lab.py       lab and part
                     cuda_judge.py     judging one section
what cases use       tiny_model.py     a model made on the fly
                     serving.py        the engine, watched step by step
                     memory_state.py   block tables and their pool as a value
                     student_tables.py an engine whose sequences have the file's block tables
"""
