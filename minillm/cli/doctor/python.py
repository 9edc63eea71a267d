"""What minillm cannot run without: Python and torch. Only these can be a *problem*."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path
from types import ModuleType

from minillm.cli.doctor.check import Check
from minillm.version import __version__

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 10)


def check_python(version: tuple[int, int, int]) -> Check:
    """Python itself, given as (major, minor, micro)."""
    value = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version[:2] < MIN_PYTHON:
        return Check("python", "problem", value, "install Python 3.11 or newer")
    return Check("python", "ok", value)


def check_minillm() -> Check:
    """The version and the folder of the code that runs, and whether pip has installed it."""
    try:
        importlib.metadata.version("minillm")
    except importlib.metadata.PackageNotFoundError:
        value = f"{__version__}, not installed, run from {package_dir()}"
        return Check("minillm", "info", value, "pip install -e .")
    return Check("minillm", "ok", f"{__version__} ({package_dir()})")


def package_dir() -> Path:
    """The folder of the running `minillm` package."""
    return Path(__file__).resolve().parents[2]


def import_torch() -> tuple[ModuleType | None, str]:
    """(torch, "") or (None, why it cannot be imported)."""
    try:
        import torch
    except Exception as error:  # a damaged torch raises OSError and AttributeError, not only ImportError
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return torch, ""


def check_torch(torch: ModuleType | None, error: str) -> Check:
    """Whether torch can be imported and is new enough, and its build."""
    if torch is None:
        return Check("torch", "problem", f"cannot be imported: {error}", 'pip install "torch>=2.10"')
    version = str(torch.__version__)
    build = "CPU build"
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda} build"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip} build"
    if not is_torch_supported(version):
        return Check("torch", "problem", f"{version}, {build}", 'pip install "torch>=2.10"')
    return Check("torch", "ok", f"{version}, {build}")


def is_torch_supported(version: str) -> bool:
    """Whether `version` is 2.10 or newer in pip's order; 2.10.0a0 (a vendor's early build) is before 2.10."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(a|b|rc|\.dev)?", version)
    if match is None:
        return False
    is_final = match[4] is None
    return (int(match[1]), int(match[2]), int(match[3] or 0), is_final) >= (*MIN_TORCH, 0, True)
