"""The memory budget of the KV cache, and the number of blocks it holds.

`kv_memory` is a hard limit: it is divided into blocks once, when the engine starts, and nothing is allocated
later. "auto" means the most the engine can use (`max_num_seqs` sequences at full context), but at most a
quarter of the main memory, or nine tenths of the GPU memory, that is free now.
"""

from __future__ import annotations

import torch

from minillm.config import EngineConfig
from minillm.config.sizes import format_apart, parse_bytes
from minillm.errors import KVCapacityError
from minillm.memory.block_table import blocks_for
from minillm.ops.device_memory import free_memory

_AUTO_SHARE = {"cpu": 0.25, "cuda": 0.9}


def num_blocks_for(
    bytes_per_token: int, engine: EngineConfig, device: torch.device, max_model_len: int
) -> int:
    """The number of blocks that fit in the engine's `kv_memory`, at `bytes_per_token` bytes per token slot.

    Raises:
        KVCapacityError: not even one block fits, or `kv_memory` is more than the free memory.
    """
    block_bytes = engine.block_size * bytes_per_token
    if engine.kv_memory == "auto":
        useful = blocks_for(max_model_len, engine.block_size) * engine.max_num_seqs * block_bytes
        budget = min(int(free_memory(device) * _AUTO_SHARE[device.type]), useful)
    else:
        budget, free = parse_bytes(engine.kv_memory), free_memory(device)
        if budget > free:
            wanted, there = format_apart(budget, free)
            raise KVCapacityError(
                f"kv_memory of {wanted} is more than the {there} that are free",
                'lower kv_memory, or leave it at "auto"',
            )
    if budget < block_bytes:
        given, needed = format_apart(budget, block_bytes)
        raise KVCapacityError(
            f"kv_memory of {given} does not hold one block: {engine.block_size} tokens need {needed}",
            "raise kv_memory or lower block_size",
        )
    return budget // block_bytes
