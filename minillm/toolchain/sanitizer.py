"""What kernels compiled with ASan and UBSan need around them: a process prepared for it.

    MINILLM_SANITIZE=1     compiles csrc/cpu, and csrc/cuda for the simulator (its flavour `asan`), that way
    LD_PRELOAD=...         the sanitizers' runtime: it must be there before anything allocates, and Python is
                           not compiled with it. libstdc++ behind it, whose exceptions it must see
    ASAN_OPTIONS=...       no search for leaks, of which Python has many at its end

The first mistake ends the process, with its place on stderr. torch's CPU tensors are malloc's, so each has
forbidden ground around it. Left out: clang, whose runtime has another name, and which lets misaligned
loads of structs pass.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from minillm.errors import UsageError
from minillm.toolchain.compiler import find_compiler

SANITIZE = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined".split()
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")


def sanitizing() -> bool:
    """Whether kernels are to be compiled with sanitizers: MINILLM_SANITIZE=1."""
    return os.environ.get("MINILLM_SANITIZE") == "1"


def preload() -> str:
    """The value of LD_PRELOAD, or "" where the compiler has no such libraries."""
    compiler = find_compiler()
    if compiler is None or "clang" in compiler.version:
        return ""
    paths = [_path(compiler.path, name) for name in LIBRARIES]
    return ":".join(map(str, paths)) if all(path.is_file() for path in paths) else ""


def environment() -> dict[str, str]:
    """What to add to a process's environment for its kernels to run under the sanitizers.

    Raises:
        UsageError: the compiler has no sanitizers.
    """
    libraries = preload()
    if not libraries:
        raise UsageError(
            "there is no g++ with a shared AddressSanitizer", "install g++ and its libasan, or set CXX"
        )
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return {"MINILLM_SANITIZE": "1", "LD_PRELOAD": libraries, **options}


def require_preloaded() -> None:
    """Stop before a library is loaded that would end a process which was not prepared for it.

    Raises:
        UsageError: MINILLM_SANITIZE is 1, and nothing was preloaded.
    """
    if sanitizing() and not hasattr(ctypes.CDLL(None), "__asan_init"):
        raise UsageError("MINILLM_SANITIZE=1 without the sanitizers preloaded", "bash scripts/sanitize.sh")


def _path(compiler: str, name: str) -> Path:
    said = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
    return Path(said.stdout.strip() or name)


if __name__ == "__main__":  # for scripts/sanitize.sh: a line per variable, nothing where it cannot be done
    if preload():
        print("\n".join(f"{name}={value}" for name, value in environment().items()))
