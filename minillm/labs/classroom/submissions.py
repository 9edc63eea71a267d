"""Who handed in which file: one folder per student, flat files, zips, or a mixture of them.

    DIR/alice/lab3.py          DIR/bob_lab3.py          DIR/carol.zip/lab3_cache/lab3.py

Nothing is guessed. If a student has two different files for one lab, neither is checked, and the row says so.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from minillm.labs.classroom.naming import LabName, lab_name, student_name
from minillm.labs.classroom.reading import BadFile, read_file
from minillm.labs.classroom.unpack import BadZip, unpack
from minillm.labs.grader.lab import Lab

MAX_DEPTH = 6
_SOURCES = (".py", ".cu")


@dataclass(frozen=True)
class Submission:
    """One row of the gradebook. `files`: the lab's file first, then the modules beside it; empty if there is
    a `problem`."""

    student: str
    lab: Lab | None
    files: tuple[tuple[str, bytes], ...] = ()
    problem: str = ""


@dataclass
class _Student:
    files: list[tuple[Path, LabName | None]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_submissions(
    root: Path, labs: Sequence[Lab], only: Lab | None, scratch: Path, ours: Container[Path] = ()
) -> list[Submission]:
    """Every submission under `root`, a folder or a zip of one, by student and lab.

    Args:
        labs: all labs.
        only: every student gets one row, for this lab.
        scratch: an empty folder for what is unpacked.
        ours: paths in `root` that are no submissions.
    """
    found: list[Submission] = []
    for name, student in sorted(_students(root, scratch, ours).items()):
        found += _rows(name, student, labs, only)
    return found


def single_submission(folder: Path, lab: Lab, scratch: Path) -> Submission:
    """One student's submission of `lab`: a folder with the file, or with a zip of it."""
    student = _Student()
    _add_folder(student, folder, scratch)
    return _row("", student, lab, is_only=True)


def _students(root: Path, scratch: Path, ours: Container[Path]) -> dict[str, _Student]:
    """Files and problems by student."""
    students: dict[str, _Student] = {}
    if root.is_file():
        unpack(root, scratch / "root")
        root = scratch / "root"
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or path.name == "__MACOSX" or path.resolve() in ours:
            continue
        is_folder = path.is_dir() and not path.is_symlink() and path.suffix not in _SOURCES
        named = None if is_folder else lab_name(path.stem)
        name = (named.student if named else student_name(path.name if is_folder else path.stem)) or path.name
        student = students.setdefault(name, _Student())
        if is_folder:
            _add_folder(student, path, scratch)
        elif path.suffix.lower() == ".zip":
            _add_zip(student, path, scratch)
        elif path.suffix.lower() in _SOURCES:
            student.files.append((path, named))
        else:
            student.problems.append(f"{path.name} is not a lab's file")
    return students


def _add_folder(student: _Student, folder: Path, scratch: Path, in_zip: bool = False) -> None:
    for path in _walk(folder):
        if path.suffix.lower() in _SOURCES:
            student.files.append((path, lab_name(path.stem)))
        elif not in_zip:
            _add_zip(student, path, scratch)
    if not os.access(folder, os.R_OK | os.X_OK):
        student.problems.append(f"the folder {folder.name} cannot be read")


def _add_zip(student: _Student, archive: Path, scratch: Path) -> None:
    folder = scratch / f"zip{sum(1 for _ in scratch.iterdir())}"
    folder.mkdir()
    try:
        if archive.is_symlink():
            raise BadZip(f"{archive.name} is a link, not a file")
        unpack(archive, folder)
    except BadZip as error:
        student.problems.append(str(error))
        return
    _add_folder(student, folder, scratch, in_zip=True)


def _walk(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Sources and zips below `folder`, also a folder that is called like a source: it will be refused."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if path.name.startswith(".") or path.name in ("__MACOSX", "__pycache__"):
            continue
        if path.suffix.lower() in (*_SOURCES, ".zip"):
            yield path
        elif path.is_dir() and not path.is_symlink() and depth < MAX_DEPTH:
            yield from _walk(path, depth + 1)


def _rows(name: str, student: _Student, labs: Sequence[Lab], only: Lab | None) -> Iterator[Submission]:
    """One row for each lab of which the student has a file; at least one row."""
    numbers = {named.number for _, named in student.files if named}
    wanted = [only] if only else [lab for lab in labs if lab.number in numbers]
    for lab in wanted:
        yield _row(name, student, lab, only is not None)
    known = {lab.number for lab in labs}
    for number in sorted(numbers - known) if not only else ():
        yield Submission(name, None, problem=f"there is no lab {number}")
    if not wanted and not numbers:
        listed = ", ".join(path.name for path, _ in student.files[:3])
        reason = f"no lab number in the name of {listed}" if listed else "no lab's file"
        yield Submission(name, None, problem="; ".join(student.problems) or reason)


def _row(name: str, student: _Student, lab: Lab, is_only: bool) -> Submission:
    candidates = _candidates(student, lab, is_only)
    if not candidates:
        suffix = Path(lab.file).suffix
        others = [path.name for path, named in student.files if named and named.number == lab.number]
        reason = f"{others[0]} is not a {suffix} file" if others else f"no {lab.file}"
        return Submission(name, lab, problem="; ".join(student.problems) or reason)
    try:
        texts = {read_file(path): path for path in reversed(candidates)}
    except BadFile as error:
        return Submission(name, lab, problem=str(error))
    if len(texts) > 1:
        listed = ", ".join(sorted(path.name for path in texts.values()))
        return Submission(name, lab, problem=f"several different files: {listed}; leave one of them")
    (data, path), *_ = texts.items()
    return Submission(name, lab, ((lab.file, data), *_helpers(path, candidates, student)))


def _candidates(student: _Student, lab: Lab, is_only: bool) -> list[Path]:
    """The files that can be the lab's: those called `labN`; else those with the lab's number in the name;
    else, if only this lab is graded, the student's only file."""
    right = [(path, named) for path, named in student.files if path.suffix.lower() == Path(lab.file).suffix]
    plain = [path for path, named in right if named and named.number == lab.number and named.is_plain]
    named_so = [path for path, named in right if named and named.number == lab.number]
    unnamed = [path for path, named in right if named is None]
    return plain or named_so or (unnamed if is_only and len(unnamed) == 1 else [])


def _helpers(path: Path, candidates: list[Path], student: _Student) -> Iterator[tuple[str, bytes]]:
    """The student's own Python modules beside the file: it may import them."""
    number = next((named.number for file, named in student.files if file == path and named), None)
    for other, named in student.files:
        is_other_lab = named is not None and named.number != number
        if other.parent == path.parent and other not in candidates and not is_other_lab:
            with suppress(BadFile):  # the file itself may not need it
                yield other.name, read_file(other)
