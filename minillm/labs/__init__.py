"""Labs: write a part of the engine yourself, then run the engine with it.

    grader/          what all labs share: tasks, judging, child processes, skeletons
    labN_name/       one lab: lab.py (its tasks), *_cases.py (cases and known mistakes), handout.md

The solution of a lab is the engine's own part, so this package contains no solutions. A student's file runs
only in a child process with time and memory limits. The limits guard against accidents (endless loops, huge
tensors, crashes). They are not a sandbox: the child has the same rights as the user.
"""
