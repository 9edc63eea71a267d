"""The files of csrc: beside the package in a checkout, inside the package when installed.

A source may be in any sub-folder of its part (cpu, cuda, shared, simt). It can include the headers of every
folder of that part, and those of csrc/shared, by their bare names.
"""

from __future__ import annotations

from pathlib import Path

from minillm.toolchain.compiler import BuildFailed

SHARED = "shared"  # the description of a model and its binding, a part of several libraries
PACKAGE = Path(__file__).resolve().parents[1]


def csrc() -> Path:
    """The folder that contains cpu, cuda, shared and simt.

    Raises:
        BuildFailed: it does not exist.
    """
    for folder in (PACKAGE.parent / "csrc", PACKAGE / "csrc"):
        # Another project could also have a folder named csrc; a student's package has the simulator only.
        if any(folder.glob("cpu/*.cpp")) or any(folder.glob("simt/*.cpp")):
            return folder
    raise BuildFailed("the kernels' sources (csrc) are missing: install minillm again")


def find_sources(part: str, suffix: str) -> list[Path]:
    """The files of csrc/<part> that end in `suffix`, in a fixed order.

    Raises:
        BuildFailed: there are none.
    """
    found = sorted((csrc() / part).rglob(f"*{suffix}"))
    if not found:
        raise BuildFailed(f"the kernels' sources (csrc/{part}) are missing: install minillm again")
    return found


def include_flags(part: str) -> list[str]:
    """-I flags for csrc/<part>, for every folder below it that has headers, and for csrc/shared."""
    top = csrc() / part
    folders = sorted({path.parent for path in top.rglob("*.h")} - {top})
    return [word for folder in (top, *folders, csrc() / SHARED) for word in ("-I", str(folder))]
