"""The headers and libraries of torch. The functions import torch; importing this module does not."""

from __future__ import annotations

from pathlib import Path

# Only torch's stable headers: one library serves torch 2.10 and later.
STABLE = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
LINK = ["-ltorch_cpu"]


def torch_version() -> str:
    """For example "torch 2.13.0+cpu"."""
    import torch

    return f"torch {torch.__version__}"


def torch_includes() -> list[str]:
    """Include flags for the headers, as system headers: they cause no warnings."""
    return ["-isystem", str(_folder() / "include")]


def torch_library_folder() -> str:
    """The linker flag for the folder of the libraries."""
    return f"-L{_folder() / 'lib'}"


def _folder() -> Path:
    import torch

    return Path(torch.__file__).resolve().parent
