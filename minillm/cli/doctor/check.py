"""One line of the report, and two ways to ask the system that never raise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "info", "missing", "problem"]


@dataclass(frozen=True)
class Check:
    """One line of the report: `advice` says what to do about it, and is empty when there is nothing to do."""

    name: str
    status: Status
    value: str
    advice: str = ""


def read_text(path: str) -> str:
    """A file's text, or "" where the system has no such file (macOS has no /proc)."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
