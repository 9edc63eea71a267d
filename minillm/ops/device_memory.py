"""The free memory of a device."""

from __future__ import annotations

from pathlib import Path

import torch

_FALLBACK_FREE = 4 << 30


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
