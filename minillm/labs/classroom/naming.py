"""The student and the lab in the name of a file: `alice_lab3.py`, `lab3_alice.py`, an LMS's own forms.

alice_lab3.py                               flat files
smithalice_12345_678910_lab3-1.py           Canvas: user, ids, the name of the file, resubmission
Alice Smith_12345_assignsubmission_file_    Moodle: a folder for each student
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_LAB = re.compile(
    r"(?P<before>.*?)(?<![a-z])lab[ _-]?0*(?P<number>\d+)(?P<after>.*)", re.IGNORECASE | re.DOTALL
)
_LMS = re.compile(r"(_LATE)?(_\d+_assignsubmission_file_?|_\d{3,}_\d{3,}|_\d{3,}_question_\d+_\d+)$")
_AGAIN = re.compile(r"[ _-]?\(?\d*\)?")  # "lab3-1", "lab3 (2)": handed in again, or downloaded twice
_EDGE = " _-."


@dataclass(frozen=True)
class LabName:
    """What a file's name says. `is_plain`: it is `labN` alone, perhaps with the mark of a resubmission."""

    number: int
    student: str
    is_plain: bool


def lab_name(stem: str) -> LabName | None:
    """The lab and the student in a file's name without its suffix; None if it names no lab."""
    found = _LAB.fullmatch(stem)
    if found is None or len(found["number"]) > 3:
        return None
    is_plain = bool(_AGAIN.fullmatch(found["after"]))
    student = student_name(found["before"]) or (
        "" if is_plain else student_name(found["after"].lstrip(_EDGE))
    )
    return LabName(int(found["number"]), student, is_plain)


def student_name(text: str) -> str:
    """A student's name without what an LMS adds; one form for letters that Unicode writes in two ways."""
    return _LMS.sub("", unicodedata.normalize("NFC", text).rstrip(_EDGE)).rstrip(_EDGE)
