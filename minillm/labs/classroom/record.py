"""The result of one submission on disk: what was graded, how, and what came out.

    results/alice/lab3.json      written at once when the submission is graded, never half
    results/alice/lab3.md        the report for the student, which a lecturer may edit

A result is used again only if everything that it depends on is the same: the file, the modules beside it, the
seed, the hidden cases, the grader. So a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import minillm.labs
from minillm.labs.classroom.submissions import Submission
from minillm.version import __version__


@dataclass(frozen=True)
class Rules:
    """How a class is graded: the seed of the random cases, hidden cases, whether copies get no points."""

    seed: int = 0
    cases: Path | None = None
    refuse_copies: bool = False

    def key(self) -> dict[str, Any]:
        """What a result depends on, apart from the submission."""
        hidden = hashlib.sha256(self.cases.read_bytes()).hexdigest() if self.cases else None
        return {
            "version": __version__,
            "grader": grader_digest(),
            "seed": self.seed,
            "cases": hidden,
            "refuse_copies": self.refuse_copies,
        }


@cache
def grader_digest() -> str:
    """A hash over the labs and their grader: a result of another grader is not used again."""
    total = hashlib.sha256()
    for path in sorted(Path(minillm.labs.__path__[0]).rglob("*")):
        if path.suffix in (".py", ".cu") and "classroom" not in path.parts:
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


def sha256(files: Iterable[tuple[str, bytes]]) -> str:
    """A hash over names and bytes; of one file, over its bytes alone, as `sha256sum` prints it."""
    files = list(files)
    if len(files) == 1:
        return hashlib.sha256(files[0][1]).hexdigest()
    listed = [(name, hashlib.sha256(data).hexdigest()) for name, data in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def place(results: Path, submission: Submission) -> Path:
    """The path of a submission's result, without a suffix.

    A name that is not plain gets a hash: other names must not meet there, on any file system.
    """
    name = submission.student
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,50}", name):
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40].strip("_") or "student"
        name = f"{plain}.{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return results / name / (f"lab{submission.lab.number}" if submission.lab else "unknown")


def read_record(path: Path) -> dict[str, Any]:
    """The record in `path`; empty if there is none or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing, whenever the program is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(part, path)
