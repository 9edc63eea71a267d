"""Reads from kernels/bugs.cu and kernels/sync.cu which lines are wrong and what the simulator must report."""

from __future__ import annotations

import re
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "cuda" / "kernels"
FILE, SYNC_FILE = KERNELS / "bugs.cu", KERNELS / "sync.cu"
# Kernels that look wrong but are right.
RIGHT = ["right_barriers", "right_syncwarp", "right_sharing", "right_local_arrays", "right_early_return"]
SYNC_RIGHT = [
    "right_chain_of_masks",
    "right_order_before_the_first_barrier",
    "right_two_readers",
    "right_two_lines",
]


def marked(word: str, file: Path = FILE) -> dict[str, tuple[str, int]]:
    """{kernel: (what, line)} from the comments `// WORD what kernel`."""
    found = {}
    for number, text in enumerate(file.read_text().splitlines(), start=1):
        match = re.search(rf"// {word} (?:(.+) )?(\w+)$", text)
        if match:
            found[match[2]] = ((match[1] or "").replace("_", " "), number)
    return found


ALWAYS, CHECKED, ASAN, OTHER = marked("BUG"), marked("BUG-CHECK"), marked("BUG-ASAN"), marked("OTHER")
SYNC_ALWAYS, SYNC_CHECKED = marked("BUG", SYNC_FILE), marked("BUG-CHECK", SYNC_FILE)
SYNC_OTHER = marked("OTHER", SYNC_FILE)
