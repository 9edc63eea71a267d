"""The environment for kernels compiled with ASan and UBSan.

    MINILLM_SANITIZE=1     csrc/cpu is compiled with them, and csrc/cuda for the simulator (flavour `asan`)
    LD_PRELOAD=...         the sanitizers' runtime: Python is not linked with it, and it must be loaded before
                           the first allocation; then libstdc++, whose exceptions the runtime must intercept
    ASAN_OPTIONS=...       no leak check: Python has many leaks at exit

The first error ends the process and prints its place on stderr. torch allocates CPU tensors with malloc, so
each has redzones around it. Left out: clang, whose runtime has another name, and which accepts misaligned
loads of structs.
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
    """Whether kernels are compiled with sanitizers: MINILLM_SANITIZE is 1."""
    return os.environ.get("MINILLM_SANITIZE") == "1"


def preload() -> str:
    """The value of LD_PRELOAD, or "" if the compiler has no such libraries."""
    compiler = find_compiler()
    if compiler is None or "clang" in compiler.version:
        return ""
    paths = [_path(compiler.path, name) for name in LIBRARIES]
    return ":".join(map(str, paths)) if all(path.is_file() for path in paths) else ""


def environment() -> dict[str, str]:
    """The variables to add to a process's environment to run kernels with the sanitizers.

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
    """Check that the sanitizers are preloaded. Without them, loading a library would end the process.

    Raises:
        UsageError: MINILLM_SANITIZE is 1, and the sanitizers are not preloaded.
    """
    if sanitizing() and not hasattr(ctypes.CDLL(None), "__asan_init"):
        raise UsageError("MINILLM_SANITIZE=1 without the sanitizers preloaded", "bash scripts/sanitize.sh")


def _path(compiler: str, name: str) -> Path:
    said = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
    return Path(said.stdout.strip() or name)


if __name__ == "__main__":  # for scripts/sanitize.sh: one line per variable; no output without sanitizers
    if preload():
        print("\n".join(f"{name}={value}" for name, value in environment().items()))
