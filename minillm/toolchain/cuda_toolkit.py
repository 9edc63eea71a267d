"""Finds CUDA on this machine. Uses only the standard library: `minillm doctor` also runs without torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path


def find_cuda() -> Path | None:
    """CUDA's folder, which contains bin/nvcc and the headers; None if there is none."""
    nvcc = shutil.which("nvcc")
    # The nvcc on the PATH can be a wrapper outside CUDA's folder.
    found = [
        os.environ.get("CUDA_HOME"),
        Path(nvcc).resolve().parent.parent if nvcc else None,
        "/usr/local/cuda",
    ]
    for folder in found:
        if folder and (Path(folder) / "bin" / "nvcc").is_file() and headers(Path(folder)).is_dir():
            return Path(folder)
    return None


def headers(cuda: Path) -> Path:
    """The folder of cuda_runtime.h; a path that does not exist if there is no such file."""
    return cuda / "include" if (cuda / "include" / "cuda_runtime.h").is_file() else cuda / "no headers"


def runtime_folder(cuda: Path) -> Path:
    """The folder of libcudart_static.a, which is not lib64 in every distribution."""
    for folder in (
        "lib64",
        "lib",
        "targets/x86_64-linux/lib",
        "targets/sbsa-linux/lib",
        "lib/x86_64-linux-gnu",
    ):
        if (cuda / folder / "libcudart_static.a").is_file():
            return cuda / folder
    return cuda / "lib64"


def nvcc_version(cuda: Path) -> str:
    """For example "13.0"."""
    said = subprocess.run([cuda / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\S+),", said)
    return match[1] if match else "unknown"
