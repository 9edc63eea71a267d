"""Labs: write a part of the engine yourself, then run the engine with it.

    grader/          what all labs share: tasks, judging, child processes, skeletons
    labN_name/       one lab: lab.py (its tasks), *_cases.py (cases and known mistakes), handout.md

The solution of a lab is the engine's own part, so nothing here holds an answer. A student's file is
code and is run, but only in a child process with time and memory limits. The limits guard against
accidents (endless loops, huge tensors, crashes); they are no sandbox: the child has its user's rights.
"""
