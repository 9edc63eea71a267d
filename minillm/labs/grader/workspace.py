"""A student's folder: the handout and the file to write, and how `check` finds the file."""

from __future__ import annotations

from pathlib import Path

from minillm.errors import UsageError
from minillm.labs.grader.lab import Lab
from minillm.labs.grader.skeleton import skeleton


def start(lab: Lab, folder: Path, force: bool = False) -> Path:
    """Write the handout and the skeleton of `lab` to `folder`; return the skeleton's path.

    Raises:
        UsageError: the student's file already exists (and `force` is false), or a file cannot be written.
    """
    file = folder / lab.file
    if file.exists() and not force:
        raise UsageError(f"{file} already exists", "--force overwrites it with a new skeleton")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(lab.handout(), encoding="utf-8")
        file.write_text(skeleton(lab), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}", "choose a folder with --dir") from None
    return file


def find_file(lab: Lab, folder: Path | None) -> Path:
    """The student's file: in `folder`; without one, in the current folder or in the folder made by `start`.

    Raises:
        UsageError: there is no such file.
    """
    folders = [folder] if folder else [Path(), Path(lab.folder)]
    for candidate in folders:
        if (candidate / lab.file).is_file():
            return candidate / lab.file
    where = " or ".join(str(candidate) for candidate in folders)
    raise UsageError(f"there is no {lab.file} in {where}", f"minillm labs start {lab.number}, or give --dir")
