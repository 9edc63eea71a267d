"""One line of the report, and a way to read system files that never raises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "info", "missing", "problem"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `advice` says what to do; it is empty if there is nothing to do."""

    name: str
    status: Status
    value: str
    advice: str = ""


def read_text(path: str) -> str:
    """A file's text, or "" if the system has no such file (macOS has no /proc)."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
