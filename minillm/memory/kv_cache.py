"""The tensors behind the block ids: one K and one V tensor per layer.

    k[layer]  [num_blocks, block_size, num_kv_heads, head_dim]

           slot 0   slot 1  ...            one slot = one token of one layer: num_kv_heads rows
    block 0  [h0 h1] [h0 h1] ...           of head_dim numbers
    block 1  [h0 h1] ...

A block id names the same block in every layer, so one block table serves the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.config.sizes import format_bytes
from minillm.errors import KVCapacityError


@dataclass
class KVCache:
    """K and V of every layer: lists of `[num_blocks, block_size, num_kv_heads, head_dim]`."""

    k: list[Tensor]
    v: list[Tensor]

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """Allocate the tensors. They are not cleared: no slot may be read before it is written.

        Raises:
            KVCapacityError: the device does not have the memory.
        """
        shape = (num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        try:
            return cls(
                [torch.empty(shape, dtype=dtype, device=device) for _ in layers],
                [torch.empty(shape, dtype=dtype, device=device) for _ in layers],
            )
        except (RuntimeError, MemoryError):  # torch raises RuntimeError on the CPU, its subclass on a GPU
            nbytes = num_blocks * block_size * config.kv_bytes_per_token(dtype.itemsize)
            raise KVCapacityError(
                f"the KV cache of {num_blocks} blocks takes {format_bytes(nbytes)}, "
                f"which could not be allocated on {device}",
                "lower kv_memory",
            ) from None

    @property
    def nbytes(self) -> int:
        """The size of all tensors together, in bytes."""
        return sum(t.nbytes for t in (*self.k, *self.v))
