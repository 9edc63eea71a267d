"""Finds and runs the C++ compiler."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from minillm.toolchain.crew import Crew

# Flags of all host code except csrc/cpu, which is compiled for speed.
COMMON = (
    "-std=c++20 -g -fPIC -Wall -Wextra -ffp-contract=off -fno-strict-aliasing -fno-threadsafe-statics".split()
)
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


class BuildFailed(Exception):
    """The kernels cannot be compiled here; the message has the reason or the compiler's errors."""


@dataclass(frozen=True)
class Compiler:
    """A compiler that runs, and the first line of its --version."""

    path: str
    version: str


def find_compiler() -> Compiler | None:
    """The first of $CXX, c++, g++ and clang++ that runs."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if not path:
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
            return Compiler(path, said.stdout.partition("\n")[0].strip())
    return None


def require_compiler() -> Compiler:
    """`find_compiler`, or BuildFailed."""
    compiler = find_compiler()
    if compiler is None or sys.platform == "win32":
        raise BuildFailed("there is no C++ compiler")
    return compiler


def shared_runtime(compiler: Compiler) -> list[str]:
    """The path of the shared libstdc++, to be linked first; empty if the compiler does not find one.

    Some compilers link libstdc++ statically. Such a library has a second copy of it beside the one that torch
    has loaded, and the first number that an error message prints crashes the process.
    """
    command = [compiler.path, "-print-file-name=libstdc++.so.6"]
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    path = Path(found.stdout.strip())
    return [str(path)] if found.returncode == 0 and path.is_absolute() and path.is_file() else []


def run_compiler(crew: Crew, command: list[str]) -> None:
    """Run a compiler in the crew's process group.

    Raises:
        BuildFailed: it fails; the message has its first errors.
        OSError: it fails because the disk is full.
    """
    variables = os.environ | {"LC_ALL": "C"}  # English messages: they are searched below
    if os.environ.get("MINILLM_SANITIZE"):
        variables.pop("LD_PRELOAD", None)  # under the sanitizers a compiler takes twice the time
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env=variables,
        process_group=crew.group,
    )
    if done.returncode:
        _raise_complaint(command, done)


def _raise_complaint(command: list[str], done: subprocess.CompletedProcess[str]) -> NoReturn:
    for number in _DISK_IS_FULL:
        if os.strerror(number) in done.stderr:
            raise OSError(number, os.strerror(number))
    complaint = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no message"]
    raise BuildFailed(f"{Path(command[0]).name} failed: " + "; ".join(complaint[:3]))


def num_jobs() -> int:
    """The number of compilers to run at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, 8))
