"""The tensors behind the block ids: one K and one V tensor per layer.

    k[layer]  [num_blocks, block_size, num_kv_heads, head_dim]

           slot 0   slot 1  ...            one slot = one token of one layer: num_kv_heads rows
    block 0  [h0 h1] [h0 h1] ...           of head_dim numbers
    block 1  [h0 h1] ...

A block id names the same block in every layer, so one block table serves the whole model.

With `kv_dtype="int8"` or `"fp8"` a slot has for each head `head_dim` codes of one byte, and a float32 scale:

    slot 0     [c0 c1 ... c63 | scale] [c0 c1 ... c63 | scale]     68 bytes a head of 64, in bfloat16 128:
                h0                      h1                          1.88 times as many tokens in a memory

The scale is that of one token and one head, so a token's bytes do not depend on the tokens around it, and
blocks are shared, copied and forked as before. Where in its block each byte lies: `ops/kv_codes.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.config.model import SCALE_BYTES
from minillm.errors import KVCapacityError
from minillm.ops.device_memory import allocation
from minillm.ops.kv_codes import DTYPES


@dataclass
class KVCache:
    """K and V of every layer: lists of `[num_blocks, block_size, num_kv_heads, head_dim]`.

    In 8 bits the last dimension is head_dim + 4, and `ops/kv_codes.py` has the logical view.
    """

    k: list[Tensor]
    v: list[Tensor]
    allocation_seconds: float = 0.0

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """Allocate the tensors. They are not cleared: no slot may be read before it is written.

        Raises:
            KVCapacityError: the system refuses the memory; the message has the estimate.
        """
        shape = (num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        if config.kv_dtype is not None:
            shape, dtype = (*shape[:3], config.head_dim + SCALE_BYTES), DTYPES[config.kv_dtype]
        layers = range(config.num_hidden_layers)
        started = time.perf_counter()
        needed = num_blocks * block_size * config.kv_bytes_per_token(dtype.itemsize)
        with allocation(f"{num_blocks} KV blocks", needed, "lower kv_memory", KVCapacityError):
            return cls(
                [torch.empty(shape, dtype=dtype, device=device) for _ in layers],
                [torch.empty(shape, dtype=dtype, device=device) for _ in layers],
                time.perf_counter() - started,
            )

    @property
    def nbytes(self) -> int:
        """The size of all tensors together, in bytes."""
        return sum(t.nbytes for t in (*self.k, *self.v))
