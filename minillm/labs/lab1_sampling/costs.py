"""What the parts of this lab may cost. The bounds are wide: other loops and other operations are as good."""

from __future__ import annotations

from minillm.labs.grader.cost import Work
from minillm.labs.grader.lab import Words


def few_ops(work: Work, bound: int, where: str) -> Words:
    """Whether the work is at most `bound` tensor operations.

    The words do not say how many more: two solutions with one mistake then have one answer.
    """
    relation = "at most" if work.num_ops <= bound else "more than"
    return Words(f"{relation} {bound:,} tensor operations {where}")


def sorts(work: Work) -> Words:
    """Whether the row was sorted more than once."""
    return Words(
        "the row is sorted at most once" if work.ops["sort"] <= 1 else "the row is sorted several times"
    )


def little_memory(work: Work, unit: int, bound: int, what: str) -> Words:
    """Whether the work wrote at most `bound` times `unit` bytes; `what` is one unit."""
    relation = "at most" if work.bytes_written <= bound * unit else "more than"
    return Words(f"{relation} {bound} x the bytes of {what}")
