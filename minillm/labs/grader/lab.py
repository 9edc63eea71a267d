"""A lab: tasks over parts of the engine, each with cases and known mistakes.

A new lab is one folder `minillm/labs/labN_name/`: `lab.py` with a `LAB`, modules with the cases and known
mistakes of its tasks, and `handout.md`. `registry.py` finds it there.

    Lab -> Task -> Part       the function or methods of the engine that the student writes
                -> Case       run(implementation) -> a value; run with the student's part and the engine's
                -> Mistake    an implementation that is wrong in one known way, and its diagnosis

A task without a part is about the whole file: its cases receive the student's module, and run the engine
with its functions through `LLM(parts=...)`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Literal

Side = Literal["answer", "cost", "aliasing"]


@dataclass(frozen=True)
class Part:
    """A function of the engine, or `methods` of a class.

    `helpers`: functions of its module, or methods of the class, that a skeleton leaves out.
    `twins`: (module, name) of other functions of the engine that could answer in its place. A student's file
    may not call them, and a student package lacks them.
    `engine_calls`: the engine has no seam for the part, and calls its own also in the task of the whole file.
    """

    module: str
    name: str
    methods: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    twins: tuple[tuple[str, str], ...] = ()
    engine_calls: bool = False

    @property
    def own(self) -> Any:
        """The engine's own function or class."""
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def label(self) -> str:
        """Its name in the task: `keep_top`, `StopMatcher.push`."""
        return ", ".join(f"{self.name}.{method}" for method in self.methods) or self.name


@dataclass(frozen=True)
class Case:
    """One run. It makes its own inputs, so an implementation that changes them affects no other case.

    The run happens in the student's process; its answer is compared outside. So an answer consists of plain
    values: tensors, numbers, text, None, `Words`, and lists of these.

    `side`: what the case looks at. "answer": is the result right. "cost": was it reached with the work that
    it needs (passes, rows, bytes, allocations). "aliasing": does it stay right if tables are longer than
    needed, grow afterwards, or the part is called twice or for two requests in turns.
    """

    name: str
    run: Callable[[Any], Any]
    side: Side = "answer"


@dataclass(frozen=True)
class Words:
    """A part of an answer in words: compared and shown as a whole ("1 pass over 12 rows")."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Cost(Words):
    """Words about what a result cost. They may stand beside it in one answer."""

    __repr__ = Words.__repr__


@dataclass(frozen=True)
class Counted(Words):
    """Words about a count that is too large, and the count. Only the words are compared.

    So a known mistake is recognised although the student's program counts a few more or less.
    """

    count: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return f"{self.text}: {self.count}" if self.count else self.text


def no_more(_: Random) -> Iterable[Case]:
    """A task without random cases."""
    return ()


@dataclass(frozen=True)
class Mistake:
    """A diagnosis, and a wrong implementation that it describes."""

    diagnosis: str
    wrong: Any


@dataclass(frozen=True)
class Task:
    """A row of the table: `number` is "3.2".

    `more`: random cases from a seeded generator, for `--seed`. They cannot be known in advance.
    """

    number: str
    title: str
    points: int
    part: Part | None
    cases: tuple[Case, ...]
    mistakes: tuple[Mistake, ...] = ()
    more: Callable[[Random], Iterable[Case]] = no_more

    @property
    def what(self) -> str:
        """The part to write, and its main idea."""
        return f"{self.part.label}: {self.title}" if self.part else self.title


@dataclass(frozen=True)
class Change:
    """The latest change of a lab: what it needs now, and the names by which an earlier file is recognised.

    Only an earlier file contains `old_names`. Each is an imported module or name ("minillm.engine.prefill"),
    an attribute (".num_computed_tokens", ".block_table.grow"), a parameter ("decode(requests)") or a
    definition ("def group_blocks").
    """

    old_names: tuple[str, ...]
    now: str


@dataclass(frozen=True)
class Lab:
    """A lab. `lab3_cache` is the name of its package and of the student's folder, `lab3.py` of the file."""

    number: int
    name: str
    title: str
    tasks: tuple[Task, ...]
    change: Change | None = None

    @property
    def folder(self) -> str:
        """Name of the lab's package, and of the folder that `start` makes."""
        return f"lab{self.number}_{self.name}"

    @property
    def package(self) -> Path:
        """The folder of the lab's own files."""
        return Path(__file__).parents[1] / self.folder

    @property
    def file(self) -> str:
        """Name of the student's file."""
        return f"lab{self.number}.py"

    @property
    def points(self) -> int:
        """Points of all tasks."""
        return sum(task.points for task in self.tasks)

    @property
    def parts(self) -> list[Part]:
        """The parts that the student writes, each once (several tasks may judge the same part)."""
        return list(dict.fromkeys(task.part for task in self.tasks if task.part))

    def tasks_of(self, part: Part) -> list[Task]:
        """The tasks that judge `part`."""
        return [task for task in self.tasks if task.part == part]

    def own(self) -> SimpleNamespace:
        """The engine's own parts under their names, as in a finished file."""
        return SimpleNamespace(**{part.name: part.own for part in self.parts})

    def handout(self) -> str:
        """The one-page handout in markdown, with the table of tasks filled in."""
        rows = [f"| {t.number} | {t.what} | {t.points} |" for t in self.tasks]
        table = "\n".join(["| task | what | points |", "| --- | --- | --- |", *rows])
        whole = ", ".join(task.number for task in self.tasks if task.part is None)
        table += (
            f"\n\nTask {whole} gives its points only if the answers of all other tasks are right."
            if whole
            else ""
        )
        return self._texts()[0].replace("{tasks}", table)

    def hints(self, number: str) -> list[str]:
        """The hints of a task; later ones give more detail."""
        sections = re.split(r"^### (\S+)\n", self._texts()[1], flags=re.MULTILINE)
        texts = dict(zip(sections[1::2], sections[2::2], strict=True))
        return [hint.strip() for hint in texts.get(number, "").split("\n---\n") if hint.strip()]

    def _texts(self) -> tuple[str, str]:
        text = (self.package / "handout.md").read_text(encoding="utf-8")
        page, _, hints = text.partition("<!-- hints -->\n")
        return page.rstrip() + "\n", hints
