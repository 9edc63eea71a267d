"""The right answers of a lab and those of the known mistakes, computed once in the grader's process.

A class of sixty needs the same answers sixty times, so they are kept for each lab and its hidden cases.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from minillm.labs.grader.answers import plain_answer
from minillm.labs.grader.codec import Foreign, Raised
from minillm.labs.grader.hidden import with_hidden
from minillm.labs.grader.lab import Lab, Task
from minillm.labs.grader.meter import Passes, counted_passes
from minillm.labs.grader.registry import find_lab

# For all references: a count of passes replaces code of the engine for a while (`intercept.py`).
_LOCK = threading.RLock()


class Reference:
    """The answers to the cases of tasks; `own(task)` is the right part. Safe to use from several threads."""

    def __init__(self, own: Callable[[Task], Any]) -> None:
        self._own = own
        self._known: dict[tuple[str, int, int], tuple[Any, Passes]] = {}

    def expected(self, task: Task, case: int) -> Any:
        """The answer of the engine's own part."""
        return self._run(task, case, -1, lambda: self._own(task))[0]

    def passes(self, task: Task, case: int) -> Passes:
        """The passes of the model that the engine's own part made."""
        return self._run(task, case, -1, lambda: self._own(task))[1]

    def mistaken(self, task: Task, case: int, mistake: int) -> Any:
        """The answer of a known mistake."""
        return self._run(task, case, mistake, lambda: task.mistakes[mistake].wrong)[0]

    def fault(self, task: Task) -> str:
        """Why the engine's own part has no answer to a case (an error of the lab); "" if it has all."""
        for i, case in enumerate(task.cases):
            found = self.expected(task, i)
            if isinstance(found, Foreign) or (isinstance(found, Raised) and not found.is_typed):
                return f"{case.name}: {getattr(found, 'message', '') or found}"
        return ""

    def _run(
        self, task: Task, case: int, mistake: int, implementation: Callable[[], Any]
    ) -> tuple[Any, Passes]:
        key = task.number, case, mistake
        with _LOCK, _one_thread():
            if key not in self._known:
                with counted_passes() as passes:
                    self._known[key] = plain_answer(task.cases[case], implementation()), passes
            return self._known[key]


def engine_reference(lab: Lab) -> Reference:
    """The engine's own parts as the right ones."""
    whole = lab.own()
    return Reference(lambda task: whole if task.part is None else task.part.own)


@lru_cache(maxsize=32)
def known_lab(number: str, seed: int = 0, cases: str = "") -> tuple[Lab, Reference]:
    """A lab with the cases of a seed and of a lecturer's file (its text), and its reference."""
    lab = with_hidden(find_lab(number), seed, cases)
    return lab, engine_reference(lab)


class _one_thread:
    """Sums are taken in the order of the student's process, which has one thread."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
