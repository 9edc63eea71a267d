"""Where torch's headers and libraries are. torch is imported when it is asked for, not with this file."""

from __future__ import annotations

from pathlib import Path

# Torch's stable headers only: one library serves torch 2.10 and later.
STABLE = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
LINK = ["-ltorch_cpu"]


def torch_version() -> str:
    """For example "torch 2.13.0+cpu"."""
    import torch

    return f"torch {torch.__version__}"


def torch_includes() -> list[str]:
    """Flags to find the headers; what is in there is no source of warnings."""
    return ["-isystem", str(_folder() / "include")]


def torch_library_folder() -> str:
    """The flag to find the libraries."""
    return f"-L{_folder() / 'lib'}"


def _folder() -> Path:
    import torch

    return Path(torch.__file__).resolve().parent
