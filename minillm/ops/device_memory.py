"""The free memory of a device, and the error if it refuses an allocation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minillm.config.sizes import format_bytes
from minillm.errors import OutOfMemory

_FALLBACK_FREE = 4 << 30
_REFUSALS = ("allocate memory", "not enough memory", "out of memory")


def free_memory(device: torch.device) -> int:
    """Bytes free on `device` now; 4 GiB if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _FALLBACK_FREE


@contextmanager
def allocation(what: str, nbytes: int, hint: str, kind: type[OutOfMemory] = OutOfMemory) -> Iterator[None]:
    """Make a typed error of an allocation that the system refuses; `nbytes` is the estimate of all of them.

    Raises:
        OutOfMemory: of the given `kind`, with the estimate.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        refused = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
            word in str(error) for word in _REFUSALS
        )
        if not refused:
            raise
        raise kind(f"{what} need {format_bytes(nbytes)}, and the system refuses them", hint) from None
