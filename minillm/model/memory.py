"""Estimates the memory of a model from its config, before anything is built.

A few digits in a config.json can mean any size. So the sizes are first compared with the free memory. If the
system still refuses an allocation, the error has the same estimate.
"""

from __future__ import annotations

import torch

from minillm.config import ModelConfig
from minillm.config.sizes import format_apart
from minillm.errors import OutOfMemory
from minillm.model.quantization.sizes import saved_bytes
from minillm.model.rope import short_length
from minillm.ops.contract import DTYPES, expert_rows
from minillm.ops.device_memory import free_memory

# While they are made there are angles, cosines, sines, and one of the two scaled (rope.py).
_ROPE_COPIES = 4


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of all weights while loading; a float32 model may need half of it later (ops/cpu.py)."""
    return (config.num_parameters + _expert_padding(config)) * dtype.itemsize - saved_bytes(
        config, dtype.itemsize
    )


def _expert_padding(config: ModelConfig) -> int:
    """Numbers between the experts' matrices, which no checkpoint has."""
    total = 0
    for experts in (layer.experts for layer in config.layers if layer.experts is not None):
        gate_up = expert_rows(2 * experts.size) - 2 * experts.size
        down = expert_rows(config.hidden_size) - config.hidden_size
        total += experts.count * (
            gate_up * (config.hidden_size + config.expert_bias) + down * (experts.size + config.expert_bias)
        )
    return total


def rope_bytes(config: ModelConfig, num_positions: int) -> int:
    """Bytes at the peak while the rope tables of `num_positions` positions are made.

    A table stays when the next one is made. With longrope the tables have rows for short sequences, too.
    """
    pairs = [rope.rotary_dim(config.head_dim) // 2 for rope in config.ropes]
    kept = 2 * sum(pairs[:-1]) + _ROPE_COPIES * sum(pairs[-1:])
    num_rows = num_positions + (short_length(config, num_positions) or 0)
    return num_rows * kept * torch.float32.itemsize


def require_memory(config: ModelConfig, dtype: torch.dtype, device: torch.device, max_model_len: int) -> None:
    """Refuse a model that does not fit the memory of `device`.

    Raises:
        OutOfMemory: with the estimate, and what would fit.
    """
    free, tables = free_memory(device), rope_bytes(config, max_model_len)
    if tables > free:
        needed, there = format_apart(tables, free)
        raise OutOfMemory(
            f"the rope tables of {max_model_len} positions need {needed}, {there} are free",
            "set max_model_len to what is needed",
        )
    if weight_bytes(config, dtype) + tables > free:
        needed, there = format_apart(weight_bytes(config, dtype) + tables, free)
        fits = [name for name, t in DTYPES.items() if weight_bytes(config, t) + tables <= free]
        raise OutOfMemory(
            f"the weights and rope tables need {needed} in {str(dtype).removeprefix('torch.')}, "
            f"{there} are free",
            f"dtype {fits[0]} would fit" if fits else "use a smaller model, or quantization",
        )
