"""The cost side of a CUDA lab: what the simulator counted, beside what is needed.

Within a clear bound the words are always the same, so kernels that work in another way give equal answers.
Only beyond it they hold numbers: "k, bytes of global memory: 413,696, needed 75,008".
"""

from __future__ import annotations

from collections.abc import Mapping

from minillm.labs.grader.lab import Cost
from minillm.ops.simt import Profile

SECTOR = 32  # bytes


def bytes_moved(counted: Profile, needed: Mapping[str, int], times: float = 1.0) -> list[Cost]:
    """For each tensor of `needed`, the bytes of global memory that were read and written."""
    return [
        within(f"{name}, bytes of global memory", sum(counted.tensors.get(name, (0, 0))), bytes_, times)
        for name, bytes_ in needed.items()
    ]


def sectors_read(counted: Profile, times: float = 1.0) -> Cost:
    """The sectors that were fetched, beside those that the bytes fill."""
    needed = -(-counted.global_read_bytes // SECTOR)
    return within("sectors fetched", counted.global_read_sectors, needed, times)


def wavefronts(counted: Profile, needed: int, times: float = 1.5) -> Cost:
    """The wavefronts of shared memory."""
    return within("wavefronts of shared memory", counted.shared_wavefronts, needed, times)


def barriers(counted: Profile, needed: int, times: float = 1.0) -> Cost:
    """Barriers, each counted once per block."""
    return within("barriers", counted.barriers, needed, times)


def within(what: str, used: int, needed: int, times: float = 1.0) -> Cost:
    """What was used, beside what is needed if it is more than `times` as much."""
    return Cost(f"{what}: {used:,}, needed {needed:,}" if used > times * needed else f"{what}: as needed")
