"""The files of csrc: beside the package in a checkout, inside it when installed.

What lies in a sub-folder counts, too: a source is found wherever it is below its part, and may include
the headers of every folder of that part by their bare names.
"""

from __future__ import annotations

from pathlib import Path

from minillm.toolchain.compiler import BuildFailed

PACKAGE = Path(__file__).resolve().parents[1]


def csrc() -> Path:
    """The folder with cpu, cuda and simt in it.

    Raises:
        BuildFailed: it is not there.
    """
    for folder in (PACKAGE.parent / "csrc", PACKAGE / "csrc"):
        if any(folder.glob("cpu/*.cpp")):  # a folder named csrc could be somebody else's
            return folder
    raise BuildFailed("the kernels' sources (csrc) are not there")


def find_sources(part: str, suffix: str) -> list[Path]:
    """The files of csrc/<part> that end in `suffix`, in a fixed order.

    Raises:
        BuildFailed: there are none.
    """
    found = sorted((csrc() / part).rglob(f"*{suffix}"))
    if not found:
        raise BuildFailed(f"the kernels' sources (csrc/{part}) are not there")
    return found


def include_flags(part: str) -> list[str]:
    """-I for csrc/<part>, and for every folder below it that has headers."""
    top = csrc() / part
    folders = sorted({path.parent for path in top.rglob("*.h")} - {top})
    return [word for folder in (top, *folders) for word in ("-I", str(folder))]
