"""Finds CUDA on this machine. Uses only the standard library: `minillm doctor` also runs without torch."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Disassembler:
    """cuobjdump, and the nvdisasm that it calls."""

    cuobjdump: Path
    nvdisasm: Path

    def show(self, what: str, compiled: Path, architecture: str) -> str:
        """What an object file has for an architecture ("sm_90"): instructions ("sass") or the rest ("elf").

        Raises:
            CalledProcessError: cuobjdump cannot read the file.
        """
        command = [str(self.cuobjdump), f"-{what}", "-arch", architecture, str(compiled)]
        environment = {**os.environ, "NVDISASM_PATH": str(self.nvdisasm.parent)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def find_disassembler() -> Disassembler | None:
    """Of CUDA's folder, of the PATH, or of the packages nvidia-cuda-cuobjdump and -nvdisasm; None without."""
    cuobjdump, nvdisasm = _find_tool("cuobjdump"), _find_tool("nvdisasm")
    return Disassembler(cuobjdump, nvdisasm) if cuobjdump and nvdisasm else None


def _find_tool(name: str) -> Path | None:
    cuda, on_path = find_cuda(), shutil.which(name)
    found = [cuda / "bin" / name] if cuda else []
    found += [Path(on_path)] if on_path else []
    # nvidia is a namespace package: several folders can hold its parts.
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found += sorted(Path(folder).glob(f"*/bin/{name}"))
    return next((path for path in found if path.is_file()), None)
