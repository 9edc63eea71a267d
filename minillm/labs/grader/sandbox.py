"""The student's process in bubblewrap, if the system has it: no network, a read-only file system.

    bwrap  --unshare-all        no network; its own processes, so it sees and signals no other
           --ro-bind / /        every file can be read, none can be changed
           --tmpfs /tmp         an empty /tmp; the scratch folder is the only one to write to

Without it the audit hook (`audit.py`) refuses the same in Python, which a determined file can get around.
Left out: limits on system calls, and hiding files that the user may read.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path


def sandboxed(command: Sequence[str], scratch: str, readable: Sequence[Path]) -> list[str]:
    """`command` inside bubblewrap, or `command` itself if there is none. It may write to `scratch` only."""
    return list(command) if missing() else _wrapped(command, scratch, readable)


@cache
def missing() -> str:
    """Why there is no sandbox on this system; "" if there is one. Tried once in a process."""
    if shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    with tempfile.TemporaryDirectory() as scratch:
        command = _wrapped([sys.executable, "-c", "pass"], scratch, [])
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bwrap does not start: {error}"
    return "" if done.returncode == 0 else f"bwrap does not work here: {(done.stderr.strip() or '?')[:120]}"


def _wrapped(command: Sequence[str], scratch: str, readable: Sequence[Path]) -> list[str]:
    """Folders in /tmp that must stay readable, and the scratch folder, are put back after the empty /tmp."""
    tmp = tempfile.gettempdir()
    wanted = [*readable, Path(sys.prefix), Path(sys.base_prefix)]
    below = dict.fromkeys(str(path) for path in wanted if path.exists() and path.is_relative_to(tmp))
    back = [word for path in below for word in ("--ro-bind", path, path)]
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/"),
        *("--dev", "/dev", "--proc", "/proc", "--tmpfs", tmp, *back, "--bind", scratch, scratch),
        *("--", *command),
    ]
