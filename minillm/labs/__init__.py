"""Labs: write a part of the engine yourself, then run the engine with it.

    lab.py         what a lab is, and finding them           labN_*.py      one lab each
    skeleton.py    the engine's source -> skeleton           handouts/      one text each: page and hints
    judge.py       one task: cases, differences, diagnosis   compare.py     where two answers part
    child.py       runs the student's file                   supervise.py   keeps the child in bounds
    tiny.py        a model for it                            serving.py     the engine, watched step by step
    sections.py    labs in CUDA: texts with sections         cuda.py        runs them in the simulator

The solution of a lab is the engine's own part, so nothing here holds an answer. A student's file is
code and is run, but only in a child process with time and memory limits. The limits guard against
accidents (endless loops, huge tensors, crashes); they are no sandbox: the child has its user's rights.
"""
