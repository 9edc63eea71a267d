"""How much memory the KV cache may have, and how many blocks that is.

`kv_memory` is a hard limit: blocks are cut from it once, at start-up, and nothing is allocated
later. "auto" takes what the engine could use at most (every sequence slot at full context), but
never more than a quarter of the main memory, or nine tenths of the GPU memory, that is free now.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from minillm.config import EngineConfig, require_int
from minillm.errors import KVCapacityError, UsageError
from minillm.memory.block_table import blocks_for

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_AUTO_SHARE = {"cpu": 0.25, "cuda": 0.9}
_FALLBACK_FREE = 4 << 30


def parse_bytes(size: int | str, name: str = "kv_memory") -> int:
    """Bytes of `256MiB`, `1.5 GB`, `4096` (text or number). KiB is 1024, KB 1000, K 1024."""
    if not isinstance(size, str):
        return require_int(name, size, minimum=1)
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]*)\s*", size)
    if not match or match[2].upper() not in _UNITS:
        raise UsageError(f"{name}={size!r} is not a size", 'write bytes or text such as "256MiB"')
    number = float(match[1]) * _UNITS[match[2].upper()]
    if number == math.inf:
        raise UsageError(f"{name} is not a size: it has {len(match[1])} digits")
    return require_int(name, int(number), minimum=1)


def format_bytes(count: float) -> str:
    """`count` bytes for people: 3.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def free_memory(device: torch.device) -> int:
    """Bytes free on `device` now; a modest guess where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _FALLBACK_FREE


def num_blocks_for(
    bytes_per_token: int, engine: EngineConfig, device: torch.device, max_model_len: int
) -> int:
    """Blocks that fit in the engine's `kv_memory`, with `bytes_per_token` for every token of a block.

    Raises:
        KVCapacityError: not even one block fits, or `kv_memory` is more than is free now.
    """
    block_bytes = engine.block_size * bytes_per_token
    if engine.kv_memory == "auto":
        useful = blocks_for(max_model_len, engine.block_size) * engine.max_num_seqs * block_bytes
        budget = min(int(free_memory(device) * _AUTO_SHARE[device.type]), useful)
    else:
        budget, free = parse_bytes(engine.kv_memory), free_memory(device)
        if budget > free:
            raise KVCapacityError(
                f"kv_memory of {format_bytes(budget)} is more than the {format_bytes(free)} that are free",
                'lower kv_memory, or leave it at "auto"',
            )
    if budget < block_bytes:
        raise KVCapacityError(
            f"kv_memory of {format_bytes(budget)} does not hold one block: {engine.block_size} tokens "
            f"need {format_bytes(block_bytes)}",
            "raise kv_memory or lower block_size",
        )
    return budget // block_bytes
