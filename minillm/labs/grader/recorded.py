"""A lab in a student package: the engine lacks its parts, and recorded answers stand for them.

    whole engine      case -> engine's part  -> expected answer
    student package   case -> recorded answer of that run, made by `minillm labs export`
                      the engine's other code calls the parts in the student's own file (written.py)

So in a package a task can fail because an earlier part is wrong. The lecturer's check uses the whole engine
and judges each part alone.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from minillm.errors import MinillmError
from minillm.labs.grader.cuda_lab import CudaLab, Section
from minillm.labs.grader.lab import Lab, Part, no_more

FILE = "recorded.json"
STUDENT = "student_lab"  # the student's file as a module, in the process that runs it
Recording = dict[str, Any]  # {"answer": encoded, "passes": [layers, rows]}


def replayed(lab: Lab) -> Lab:
    """`lab` itself; in a student package the lab with recorded answers."""
    if not is_package(lab):
        return lab
    answers = json.loads((lab.package / FILE).read_text(encoding="utf-8"))
    tasks = []
    for task in lab.tasks:
        recorded = zip(task.cases, answers[task.number], strict=True)
        cases = tuple(dataclasses.replace(c, run=partial(_replay, c.run, a)) for c, a in recorded)
        part = _packaged_part(task.part)
        tasks.append(dataclasses.replace(task, cases=cases, part=part, mistakes=(), more=no_more))
    kind = _PackagedCudaLab if isinstance(lab, CudaLab) else Lab
    return kind(**{**_fields(lab), "tasks": tuple(tasks)})


def is_package(lab: Lab) -> bool:
    """Whether this engine lacks the parts of `lab`."""
    return (lab.package / FILE).exists()


def skeleton_name(lab: Lab) -> str:
    """The name of the skeleton in a package: it cannot be made from an engine without the parts."""
    return f"{lab.file}.skeleton"


class _PackagedPart(Part):
    """A part that the engine lacks. The engine's function calls the student's (written.py of the package)."""

    @property
    def own(self) -> Any:
        if STUDENT in sys.modules:
            remember = importlib.import_module("minillm.written").remember
            owner = [self.name] if self.methods else []
            for name in (*(self.methods or (self.name,)), *self.helpers):
                remember(*owner, name)
        return super().own


class _PackagedSection(Section):
    """A section that no file of the package has."""

    @property
    def own(self) -> Any:
        return None


class _PackagedCudaLab(CudaLab):
    """A section is run in the student's own file."""

    def own(self) -> Any:
        return None

    def solution(self) -> str:
        student = sys.modules.get(STUDENT)
        return str(student.source) if student else super().solution()


def _packaged_part(part: Part | None) -> Part | None:
    if part is None:
        return None
    kind = _PackagedSection if isinstance(part, Section) else _PackagedPart
    return kind(**_fields(part))


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _replay(run: Callable[[Any], Any], recorded: Recording, implementation: Any) -> Any:
    """The recorded answer and passes, or a run in the process that has the student's file.

    Raises:
        Exception: the recorded answer is an error.
    """
    if STUDENT in sys.modules:
        return run(implementation)
    from minillm.labs.grader.codec import Raised, decode  # imports torch
    from minillm.labs.grader.meter import count_recorded

    count_recorded(*recorded["passes"])
    found = decode(recorded["answer"])
    if isinstance(found, Raised):
        raise type(found.kind, (MinillmError if found.is_typed else Exception,), {"place": found.place})(
            found.message
        )
    return found
