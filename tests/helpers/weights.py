"""A one-layer model as `ModelWeights` with random matrices: 4 query heads, 2 KV heads, head_dim 8, 17 ids."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.model.families import parse_config
from minillm.ops.contract import Matrix, PackedWeight, RopeTables
from minillm.ops.fused import LayerWeights, ModelWeights, NormWeights

HIDDEN, INNER, VOCAB, POSITIONS = 16, 24, 17, 64
INPUTS = {"qkv": HIDDEN, "o": 32, "gate_up": HIDDEN, "down": INNER}


def config(**changes: Any) -> ModelConfig:
    shape = {"hidden_size": HIDDEN, "intermediate_size": INNER, "vocab_size": VOCAB, "num_hidden_layers": 1}
    return parse_config(tiny.config(**(shape | {"head_dim": 8} | changes)))


def packed(
    out: int, size: int, kept: torch.dtype = torch.float32, dtype: torch.dtype | None = None
) -> PackedWeight:
    """A random packed matrix, stored as `kept` and computed with as `dtype` (default: `kept`)."""
    weight = torch.randn(out, size, generator=torch.Generator().manual_seed(out)) / 4
    return PackedWeight(torch.ops.minillm.pack(weight.to(kept)), out, size, dtype or kept)


def one_layer(dtype: torch.dtype = torch.float32, inner: int = INNER, **changes: Any) -> ModelWeights:
    """Make the model. `changes` replace fields of the layer."""
    ones = NormWeights(torch.ones(HIDDEN, dtype=dtype))
    shapes = {"qkv": (64, HIDDEN), "o": (HIDDEN, 32), "gate_up": (2 * inner, HIDDEN), "down": (HIDDEN, inner)}
    own: dict[str, Any] = {"input_norm": ones, "mlp_norm": ones}
    own |= {name: Matrix(packed(*shape, dtype)) for name, shape in shapes.items()}
    return ModelWeights(
        config=config(intermediate_size=inner),
        layers=(LayerWeights(**(own | changes)),),
        embedding=packed(VOCAB, HIDDEN, dtype),
        head=packed(VOCAB, HIDDEN, dtype),
        final_norm=ones,
        ropes=(RopeTables(torch.ones(POSITIONS, 4), torch.zeros(POSITIONS, 4)),),
    )


def caches(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The K or V cache of the layer."""
    return [torch.zeros(4, 16, 2, 8, dtype=dtype)]
