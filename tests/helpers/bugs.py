"""Reads from kernels/bugs.cu which of its lines are wrong and what the simulator must report for them."""

from __future__ import annotations

import re
from pathlib import Path

FILE = Path(__file__).parents[1] / "cuda" / "kernels" / "bugs.cu"
# Kernels that look wrong but are right.
RIGHT = ["right_barriers", "right_syncwarp", "right_sharing", "right_local_arrays", "right_early_return"]


def marked(word: str) -> dict[str, tuple[str, int]]:
    """{kernel: (what, line)} from the comments `// WORD what kernel`."""
    found = {}
    for number, text in enumerate(FILE.read_text().splitlines(), start=1):
        match = re.search(rf"// {word} (?:(.+) )?(\w+)$", text)
        if match:
            found[match[2]] = ((match[1] or "").replace("_", " "), number)
    return found


ALWAYS, CHECKED, ASAN, OTHER = marked("BUG"), marked("BUG-CHECK"), marked("BUG-ASAN"), marked("OTHER")
