"""Labs: write a part of the engine yourself, then run the engine with it.

    grader/          what all labs share: tasks, judging, child processes, skeletons
    labN_name/       one lab: lab.py (its tasks), *_cases.py (cases and known mistakes), handout.md

The solution of a lab is the engine's own part, so this package contains no solutions. A student's file runs
only in a child process with time and memory limits. It sends answers; the verdict is given outside it. With
bubblewrap (`bwrap`) that process has no network and a read-only file system. Without it the limits and the
audit hook guard against accidents and ordinary tricks: they are no sandbox.
"""
