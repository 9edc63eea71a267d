"""The parts that all labs share: tasks, the check of a student's file, and an engine to run it in.

definition           lab.py            lab, task, part, case, mistake
                     registry.py       finds the labs
files for students   skeleton.py       the engine's source -> skeleton
                     workspace.py      the student's folder
                     earlier.py        files written for an earlier version of a lab
answering            supervise.py      runs a file in child processes, makes a report
(student's process)  pipe.py           starts a child and reads its messages
                     sandbox.py        bubblewrap, if the system has it
                     child.py          the child: runs the cases on the file's parts, sends the answers
                     student_file.py   loads the file, takes one part from it
                     answers.py        runs one case; an exception is an answer
                     codec.py          answers as JSON
honest answers       borrowed.py       a part that is the engine's object, or has its code
                     tripwire.py       the engine's part must not answer for the student's
                     intercept.py      code in front of a function, under all its names
                     audit.py          what the file may open, start and look at
                     integrity.py      what the file replaced
                     seal.py           copies of the check's functions that a file cannot replace
                     meter.py          passes of the model, counted below all names
judging              judge.py          one task: differences, diagnosis
(grader's process)   judge_here.py     the same for a trusted file, without a child
                     reference.py      the right answers, computed once
                     hidden.py         cases of a seed and of a lecturer
                     compare.py        the first difference of two answers
                     whole_file.py     its task needs right answers in the others
                     cost.py           operations and bytes of tensor code
                     places.py         the lines that a message names
                     result.py         a task's result
                     report.py         all results, as a table and as JSON
labs in CUDA         cuda_text.py      the sections of a .cu file
                     cuda_kernels.py   compiles them for the simulator and runs them
                     cuda_errors.py    the simulator's errors with the lines of the student's file
                     cuda_cost.py      what a kernel moved, beside what is needed
                     cuda_lab.py       lab and part
                     cuda_judge.py     one section of a file
student packages     recorded.py       the lab of an engine without its parts: recorded answers
helpers of cases     tiny_model.py     a small random model
                     serving.py        runs the engine and records every step
                     memory_state.py   block tables and their pool as a value
                     student_tables.py an engine whose sequences have the file's block tables
"""
