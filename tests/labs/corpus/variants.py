"""Variants of a lab's finished file, wrong ones and odd but right ones, and what the grader must say of each.

`labN.py` beside this file lists the variants of lab N:

    SLIPS     edits of one place                    Slip("no noise", old, new, {"1.4": "no noise"})
    REWRITES  other code for one part or several    Rewrite("loops", "def keep_top(...): ...")

`says` has a part of the diagnosis for each task that fails. A rewrite that says nothing is odd but right: it
gets full marks. A file holds variants of several tasks: a mistake in one of them must not affect another.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.cuda_text import replaced, sections
from minillm.labs.grader.lab import Lab
from minillm.labs.grader.skeleton import solution


@dataclass(frozen=True)
class Slip:
    """`old` becomes `new`; `says` has a part of the diagnosis for each task that fails."""

    name: str
    old: str
    new: str
    says: dict[str, str]

    def tasks(self, lab: Lab) -> set[str]:
        """The tasks that it is about."""
        return set(self.says)

    def bound(self) -> set[str]:
        """The top-level names that it defines."""
        return set()

    def applied(self, text: str) -> str:
        """`text`, the finished file, with the edit."""
        assert text.count(self.old) == 1, f"{self.name}: the engine's source has changed, change the edit"
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Rewrite:
    """`code` is appended to the finished file and defines parts again; in CUDA it is {section: new body}.

    A method is defined again by `def grow(self, n): ...` and `BlockTable.grow = grow`.
    """

    name: str
    code: str | dict[str, str]
    says: dict[str, str] = field(default_factory=dict)

    def tasks(self, lab: Lab) -> set[str]:
        """The tasks that it is about: those of the parts that it defines again."""
        if isinstance(self.code, dict):
            return set(self.code) | set(self.says)
        places = set(_places(self.code))
        touched = [part for part in lab.parts if part.name in places or _methods(part) & places]
        found = {task.number for part in touched for task in lab.tasks_of(part)} | set(self.says)
        assert found, f"{self.name} defines no part of lab {lab.number} again"
        return found

    def bound(self) -> set[str]:
        """The top-level names that it defines."""
        return (
            set()
            if isinstance(self.code, dict)
            else {place for place in _places(self.code) if "." not in place}
        )

    def applied(self, text: str) -> str:
        """`text`, the finished file, with the new code."""
        if isinstance(self.code, str):
            return f"{text}\n\n# {self.name}\n{self.code}"
        for number, body in self.code.items():
            assert number in sections(text), f"{self.name}: the file has no section {number}"
            text = replaced(text, number, body)
        return text


Variant = Slip | Rewrite


def variants(lab: Lab) -> list[Variant]:
    """Every variant of the lab's corpus file."""
    module = importlib.import_module(f"corpus.lab{lab.number}")
    found: list[Variant] = [*getattr(module, "SLIPS", ()), *getattr(module, "REWRITES", ())]
    names = [variant.name for variant in found]
    assert len(set(names)) == len(names), f"lab {lab.number}: two variants have one name"
    return found


def wrong(lab: Lab) -> list[Variant]:
    """The variants that must fail."""
    return [variant for variant in variants(lab) if variant.says]


def odd(lab: Lab) -> list[Variant]:
    """The variants that must get full marks."""
    return [variant for variant in variants(lab) if not variant.says]


def files(lab: Lab, chosen: list[Variant]) -> list[tuple[str, list[Variant]]]:
    """A small number of files that together hold every chosen variant; no file has two of one task."""
    groups: list[list[Variant]] = []
    for variant in chosen:
        fits = (group for group in groups if all(_apart(lab, variant, other) for other in group))
        group = next(fits, None)
        if group is None:
            groups.append(group := [])
        group.append(variant)
    return [(edited(lab, group), group) for group in groups]


def edited(lab: Lab, group: list[Variant]) -> str:
    """The finished file with the variants of one group.

    Edits come first: a rewrite may repeat the text that an edit looks for.
    """
    text = solution(lab)
    for variant in sorted(group, key=lambda variant: isinstance(variant, Rewrite)):
        text = variant.applied(text)
    return text


def every(text: str, *tasks: str) -> dict[str, str]:
    """The same diagnosis for several tasks."""
    return dict.fromkeys(tasks, text)


def is_cuda(lab: Lab) -> bool:
    """Whether the lab's file is run by the simulator, which takes seconds a file."""
    return isinstance(lab, CudaLab)


def _apart(lab: Lab, left: Variant, right: Variant) -> bool:
    """Whether two variants can stand in one file: other tasks, other names."""
    return not (left.tasks(lab) & right.tasks(lab) or left.bound() & right.bound())


def _methods(part) -> set[str]:
    return {f"{part.name}.{method}" for method in (*part.methods, *part.helpers)}


def _places(code: str) -> Iterator[str]:
    """Every name and "Class.method" that the top level of `code` defines or assigns."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (ast.unparse(name) for target in node.targets for name in _targets(target))


def _targets(target: ast.expr) -> list[ast.expr]:
    return target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
