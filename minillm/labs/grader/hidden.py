"""A lecturer's cases: random ones from a seed, and those of a file.

    # cases.py                                        minillm labs check 3 --seed 7 --cases cases.py
    CASES = {
        "3.2": [call([5, 2, 7], [9], 4)],             the part is called with these arguments
        "3.3": [Case("two tables", two_tables)],      a whole case, as in the lab's own modules
    }

The grader and the student's process both build them. The student's process gets the text, never the path.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from minillm.errors import UsageError
from minillm.labs.grader.lab import Case, Lab


def call(*args: Any) -> Case:
    """A case that calls the part with these arguments; each run gets copies of them."""
    shown = ", ".join(map(repr, args))
    name = f"called with ({shown if len(shown) <= 120 else shown[:117] + '...'})"
    return Case(name, lambda part: part(*copy.deepcopy(args)))


def with_hidden(lab: Lab, seed: int = 0, text: str = "") -> Lab:
    """`lab` with the random cases of `seed` (0: none) and the cases of a lecturer's file with this text.

    Raises:
        UsageError: the text is no file of cases.
    """
    extra = _cases(lab, text) if text else {}
    tasks = []
    for task in lab.tasks:
        random = tuple(task.more(Random(f"{seed}/{task.number}"))) if seed else ()
        tasks.append(replace(task, cases=(*task.cases, *random, *extra.get(task.number, ()))))
    return replace(lab, tasks=tuple(tasks))


def read_cases(lab: Lab, file: Path | None) -> str:
    """The text of a lecturer's file, after a check; "" without a file.

    Raises:
        UsageError: it cannot be read, or is no file of cases.
    """
    if file is None:
        return ""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {error}", "--cases takes a Python file with CASES") from None
    _cases(lab, text)
    return text


def _cases(lab: Lab, text: str) -> Mapping[str, list[Case]]:
    space: dict[str, Any] = {"call": call, "Case": Case, "__name__": "lecturer_cases"}
    example = 'write CASES = {"' + lab.tasks[0].number + '": [call(...)]}'
    try:
        exec(compile(text, "<cases>", "exec"), space)
    except Exception as error:
        raise UsageError(f"the file of cases fails: {type(error).__name__}: {error}", example) from None
    cases, numbers = space.get("CASES"), [task.number for task in lab.tasks]
    if not isinstance(cases, dict):
        raise UsageError("the file of cases has no CASES", example)
    for number, listed in cases.items():
        if number not in numbers:
            raise UsageError(f"lab {lab.number} has no task {number!r}", f"tasks: {', '.join(numbers)}")
        if not isinstance(listed, list | tuple) or not all(isinstance(case, Case) for case in listed):
            raise UsageError(f"CASES[{number!r}] is not a list of cases", example)
    return cases
