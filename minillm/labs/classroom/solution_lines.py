"""The lines of a lab's solution that say something, in a form in which spaces and comments do not matter.

A line such as `return out` or `else:` says nothing. A line says something if it has at least MIN_WORDS words
and operators and is not in the skeleton. A long piece of a line says something too: the statement after
`for (...)`, the element of a list, the right side of an assignment.
"""

from __future__ import annotations

import re

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.cuda_text import check_kernels
from minillm.labs.grader.lab import Lab
from minillm.labs.grader.skeleton import skeleton, solution

MIN_WORDS = 8
MIN_PIECE = 14  # words and operators of a piece
_BETWEEN = re.compile(r"^for \( .*? ; .*? ; .*? \) |^return | = \[? ?| for \w+ in | ; ")
_WORD = re.compile(r"\w+|[^\w\s]")


def normal(line: str) -> str:
    """The words and operators of a line, one space between them, without a comment."""
    # In Python // divides: in CUDA a comment stands at the line's start or after one of ; { } ,
    code = re.split(r"\s#\s|^#|^//|(?<=[;{},])\s*//", line.strip(), maxsplit=1)[0]
    return " ".join(_WORD.findall(code))


def solution_lines(lab: Lab) -> set[str]:
    """The lines of the finished file that say something and are not in the skeleton."""
    given = {normal(line) for line in _given(lab).splitlines()}
    found = {normal(line) for line in solution(lab).splitlines()}
    pieces = {piece for line in found - given for piece in _pieces(line)}
    all_given = " ".join(_WORD.findall(_given(lab)))
    found |= {piece for piece in pieces if piece not in all_given}
    return {line for line in found - given if len(line.split()) >= MIN_WORDS and not _is_plain(line)}


def _pieces(line: str) -> list[str]:
    """The long pieces of a line in its normal form."""
    return [piece for piece in _BETWEEN.split(line) if len(piece.split()) >= MIN_PIECE]


def _given(lab: Lab) -> str:
    """What the student has: the skeleton, and in CUDA the kernels of the checks, which call the parts."""
    calls = check_kernels(lab.package / lab.file).values() if isinstance(lab, CudaLab) else ()
    return skeleton(lab) + "".join(calls)


def quoted(text: str, lines: set[str]) -> list[str]:
    """The lines of a solution that `text` holds."""
    flat = " ".join(_WORD.findall(text))
    whole = {normal(line) for line in text.splitlines()}
    return sorted(line for line in lines if line in whole or f" {line} " in f" {flat} ")


def _is_plain(line: str) -> bool:
    """Imports, signatures, and headers of loops say nothing of the solution."""
    return line.startswith(("import ", "from ", "def ", "class ", "@ "))
