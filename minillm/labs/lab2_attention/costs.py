"""What the parts of this lab may cost. The bounds are wide: a loop over the heads is as good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Words


def cost(action: Callable[[], Any], ops: int, needed: int, what: str, times: int = 4) -> list[Words]:
    """Whether `action` needs at most `ops` operations, and writes at most `times` the `needed` bytes.

    The words do not say how much more: two solutions with one mistake then have one answer.
    """
    with counted_work() as work:
        action()
    many = "at most" if work.num_ops <= ops else "more than"
    much = "at most" if work.bytes_written <= times * needed else "more than"
    size = f"{times} x the {needed / 1024:.0f} KiB of {what}"
    return [Words(f"{many} {ops} tensor operations"), Words(f"writes {much} {size}")]
