"""Weights on huge pages: a decode step walks through all of them, and each page it enters must be translated.

    4 KiB pages     135 M weights in bf16 are 65,700 pages; the processor remembers a few thousand
    2 MiB pages     the same weights are 129 pages

Each forgotten translation is a walk through the system's tables, in a virtual machine through two sets of
them, and the processor's own prefetching stops at a page's end. Measured on two cores of a virtual machine,
with the weights on either in turns: a decode step of the 135 M shape is 1 % shorter while memory is slow, 4 %
while it is fast.

Matrices are smaller than a huge page or end in the middle of one, so they are laid end to end in large pieces
of memory for which huge pages are asked; Linux alone can be asked. Where it gives none, or there is nobody to
ask, everything works as before. Left out: pages reserved by an administrator (hugetlbfs); float32 weights,
as what they leave behind when they move to half the space is best given to the next (`ops/cpu.py`).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_HUGE = 2 << 20  # bytes of a huge page
_PIECE = 32 << 20  # asked for at once; pages that are not written to take no memory
_WORTH_IT = 128 << 10  # bytes
_LINE = 64  # bytes: kernels load whole registers
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


class HugePages:
    """Hands out parts of large pieces of memory. A piece lives as long as any tensor in it."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new tensor in the CPU's memory, behind the one before; small ones are left to torch."""
        nbytes = math.prod(shape) * dtype.itemsize
        if _ADVICE is None or nbytes < _WORTH_IT:
            return torch.empty(shape, dtype=dtype)
        taken = -(-nbytes // _LINE) * _LINE
        if taken > len(self._free):
            self._free = empty_bytes(max(taken, _PIECE))
        memory, self._free = self._free[:nbytes], self._free[taken:]
        return memory.view(dtype).view(*shape)


def empty_bytes(nbytes: int) -> Tensor:
    """New memory, uint8 [nbytes], on huge pages where there are any."""
    if _ADVICE is None:
        return torch.empty(nbytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, nbytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that was built without them
        memory.madvise(_ADVICE)
    piece = torch.frombuffer(memory, dtype=torch.uint8)
    first = -piece.data_ptr() % _HUGE
    return piece[first : first + nbytes]
