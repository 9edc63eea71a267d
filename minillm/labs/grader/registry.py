"""All labs: every package `labN_name` beside the grader, in the order of the numbers."""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache

import minillm.labs
from minillm.errors import UsageError
from minillm.labs.grader.lab import Lab, Task
from minillm.labs.grader.recorded import replayed


@cache
def all_labs() -> tuple[Lab, ...]:
    """Every lab of the package, by number."""
    names = [m.name for m in pkgutil.iter_modules(minillm.labs.__path__) if re.match(r"lab\d+_", m.name)]
    labs = [replayed(importlib.import_module(f"minillm.labs.{name}.lab").LAB) for name in names]
    return tuple(sorted(labs, key=lambda lab: lab.number))


def find_lab(number: str) -> Lab:
    """The lab called `number`.

    Raises:
        UsageError: there is none; the hint lists the existing labs.
    """
    for lab in all_labs():
        if str(lab.number) == number:
            return lab
    raise UsageError(f"there is no lab {number!r}", f"labs: {', '.join(str(x.number) for x in all_labs())}")


def find_task(number: str) -> tuple[Lab, Task]:
    """The lab and the task of a number such as "3.2".

    Raises:
        UsageError: no such lab or task.
    """
    lab = find_lab(number.partition(".")[0])
    for task in lab.tasks:
        if task.number == number:
            return lab, task
    tasks = ", ".join(task.number for task in lab.tasks)
    raise UsageError(f"lab {lab.number} has no task {number!r}", f"tasks: {tasks}")
