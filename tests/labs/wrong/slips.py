"""Wrong solutions of the labs, as edits of the right ones, and what the grader has to say of each.

A slip changes one place of the finished file; `labN.py` lists those of lab N. Slips of different tasks
share a file, so that each file also shows that no task is blamed for another's mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.labs.grader.lab import Lab
from minillm.labs.grader.skeleton import solution


@dataclass(frozen=True)
class Slip:
    """`old` becomes `new`; `says` is the diagnosis of each task it costs (a part of its text)."""

    name: str
    old: str
    new: str
    says: dict[str, str]


def wrong_files(lab: Lab, slips: list[Slip]) -> list[tuple[str, list[Slip]]]:
    """Few files that together hold every slip, with no task twice in one."""
    groups: list[list[Slip]] = []
    for slip in slips:
        fits = (g for g in groups if all(not slip.says.keys() & other.says.keys() for other in g))
        group = next(fits, None)
        if group is None:
            groups.append(group := [])
        group.append(slip)
    return [(edited(solution(lab), group), group) for group in groups]


def edited(text: str, slips: list[Slip]) -> str:
    """`text` with the slips in it."""
    for slip in slips:
        assert text.count(slip.old) == 1, f"{slip.name}: the engine's source has changed, change the edit"
        text = text.replace(slip.old, slip.new)
    return text


def every(text: str, *tasks: str) -> dict[str, str]:
    """One diagnosis for several tasks."""
    return dict.fromkeys(tasks, text)
