"""One line of the report, and two ways to ask the system that never raise."""

from __future__ import annotations

import subprocess
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


def output_of(command: list[str]) -> str:
    """What a command prints to stdout, or "" if it does not run, fails, or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
