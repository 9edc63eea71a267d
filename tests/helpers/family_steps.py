"""Two steps of five sequences on any model, for tests that compare a pass with a loop over single ops.

    first step     a chunk of each sequence      q_lens new tokens each, kv_lens in the cache afterwards
    second step    one new token of each

Sequence i has blocks 9 i to 9 i + 8, of 16 tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from cases import make_meta
from torch import Tensor

from minillm.config import EngineConfig
from minillm.model.decoder import Decoder
from minillm.model.loader import load_model
from minillm.ops.contract import AttentionMetadata, Ops

TABLES = [list(range(9 * i, 9 * i + 9)) for i in range(5)]
Caches = tuple[list[Tensor], list[Tensor]]


def load_decoder(folder: Path, dtype: str, ops: Ops) -> Decoder:
    return load_model(folder, EngineConfig(dtype=dtype, device="cpu"), ops).decoder


def two_steps(q_lens: list[int], kv_lens: list[int]) -> list[tuple[Tensor, AttentionMetadata]]:
    """The token ids and the metadata of both steps."""
    ids = [torch.arange(sum(q_lens)) * 37 % 300, torch.arange(5) * 11 + 3]
    after = [length + 1 for length in kv_lens]
    metas = make_meta(TABLES, q_lens, kv_lens, 16), make_meta(TABLES, [1] * 5, after, 16)
    return list(zip(ids, metas, strict=True))
