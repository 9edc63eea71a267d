"""Wrong solutions of the labs, as edits of the correct ones, and the diagnosis of each.

A slip changes one place of the finished file; `labN.py` lists the slips of lab N. A file holds slips of
several tasks, so it also tests that a mistake in one task affects no other task.
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.labs.grader.lab import Lab
from minillm.labs.grader.skeleton import solution


@dataclass(frozen=True)
class Slip:
    """`old` becomes `new`; `says` has a part of the diagnosis for each task that fails."""

    name: str
    old: str
    new: str
    says: dict[str, str]


def wrong_files(lab: Lab, slips: list[Slip]) -> list[tuple[str, list[Slip]]]:
    """A small number of files that together hold every slip; no file has two slips of one task."""
    groups: list[list[Slip]] = []
    for slip in slips:
        fits = (g for g in groups if all(not slip.says.keys() & other.says.keys() for other in g))
        group = next(fits, None)
        if group is None:
            groups.append(group := [])
        group.append(slip)
    return [(edited(solution(lab), group), group) for group in groups]


def edited(text: str, slips: list[Slip]) -> str:
    """`text` with the edits of the slips."""
    for slip in slips:
        assert text.count(slip.old) == 1, f"{slip.name}: the engine's source has changed, change the edit"
        text = text.replace(slip.old, slip.new)
    return text


def every(text: str, *tasks: str) -> dict[str, str]:
    """The same diagnosis for several tasks."""
    return dict.fromkeys(tasks, text)
