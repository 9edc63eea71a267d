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
from minillm.labs.grader.lab import Lab, Part, Words, no_more

FILE = "recorded.json"
STUDENT = "student_lab"  # the student's file as a module, in the process that runs it


def replayed(lab: Lab) -> Lab:
    """`lab` itself; in a student package the lab with recorded answers."""
    file = lab.package / FILE
    if not file.exists():
        return lab
    answers = json.loads(file.read_text(encoding="utf-8"))
    tasks = []
    for task in lab.tasks:
        recorded = zip(task.cases, answers[task.number], strict=True)
        cases = tuple(dataclasses.replace(c, run=partial(_replay, c.run, a)) for c, a in recorded)
        part = _packaged_part(task.part)
        tasks.append(dataclasses.replace(task, cases=cases, part=part, mistakes=(), more=no_more))
    kind = _PackagedCudaLab if isinstance(lab, CudaLab) else Lab
    return kind(lab.number, lab.name, lab.title, tuple(tasks), lab.change)


def skeleton_name(lab: Lab) -> str:
    """The name of the skeleton in a package: it cannot be made from an engine without the parts."""
    return f"{lab.file}.skeleton"


class _PackagedPart(Part):
    """A part whose only implementation is the student's. The others are not replaced while one is judged."""

    @property
    def own(self) -> Any:
        student = sys.modules.get(STUDENT)
        return getattr(student or importlib.import_module(self.module), self.name)


class _PackagedSection(Section):
    @property
    def own(self) -> Any:
        return None


class _PackagedCudaLab(CudaLab):
    """A section is run in the student's own file."""

    def solution(self) -> str:
        student = sys.modules.get(STUDENT)
        return student.source if student else super().solution()


def _packaged_part(part: Part | None) -> Part | None:
    if part is None:
        return None
    kind = _PackagedSection if isinstance(part, Section) else _PackagedPart
    return kind(part.module, part.name, part.methods, part.helpers)


def _replay(run: Callable[[Any], Any], recorded: Any, implementation: Any) -> Any:
    """The recorded answer, or the student's in the process that runs the student's file.

    Raises:
        Exception: the recorded answer is an error.
    """
    return run(implementation) if STUDENT in sys.modules else decoded(recorded)


# --- answers as JSON ----------------------------------------------------------------------------------


def recorded_answer(run: Callable[[Any], Any], implementation: Any) -> Any:
    """The answer of one run as a value for JSON; an error is an answer too."""
    try:
        return encoded(run(implementation))
    except Exception as error:
        return {
            "error": type(error).__name__,
            "message": str(error),
            "typed": isinstance(error, MinillmError),
        }


def encoded(answer: Any) -> Any:
    """An answer (tensors, numbers, text, None, `Words`, lists of these) as a value for JSON."""
    import torch

    if isinstance(answer, torch.Tensor):
        raw = answer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist()
        name = str(answer.dtype).removeprefix("torch.")
        return {"dtype": name, "shape": list(answer.shape), "bytes": bytes(raw).hex()}
    if isinstance(answer, Words):
        return {"words": answer.text}
    if isinstance(answer, list | tuple):
        return [encoded(part) for part in answer]
    return answer


def decoded(value: Any) -> Any:
    """The answer of `encoded`.

    Raises:
        Exception: the answer is an error; its type has the name of the recorded one.
    """
    if isinstance(value, list):
        return [decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "words" in value:
        return Words(value["words"])
    if "error" in value:
        raise type(value["error"], (MinillmError if value["typed"] else Exception,), {})(value["message"])
    import torch

    dtype, raw = getattr(torch, value["dtype"]), bytearray.fromhex(value["bytes"])
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(value["shape"])
