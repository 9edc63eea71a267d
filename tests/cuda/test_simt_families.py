"""Decoders of each kind of family on the CUDA kernels: the reference's logits, and C2 to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import make_meta
from torch import Tensor

from minillm.config import ExpertSpec, LayerSpec, ModelConfig, RopeConfig
from minillm.model.decoder import Decoder
from minillm.ops.contract import Ops
from minillm.ops.reference import ReferenceOps
from minillm.ops.simt import SimtOps
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

VOCAB, BLOCK = 40, 4
PARTIAL = RopeConfig(rotary_factor=0.5)
FULL, MIXED = LayerSpec(None, 0.2), ExpertSpec(5, 2, 24, renormalize=True)
CAPPED, SUNK = (
    replace(FULL, softcap=2.0, norms="sandwich"),
    replace(FULL, window=5, sinks=True, experts=MIXED),
)
FAMILIES: dict[str, dict[str, Any]] = {
    "capped": {
        "layers": (CAPPED, replace(CAPPED, window=3)),
        "norm_offset": 1.0,
        "activation": "gelu_tanh",
        "logits_softcap": 5.0,
        "embedding_scale": 5.6,
    },
    "sinks and experts": {
        "layers": (SUNK, replace(SUNK, window=None)),
        "activation": "swiglu_clamped",
        "expert_bias": True,
    },
    "LayerNorm without rope": {
        "layers": (replace(FULL, rope=None),) * 2,
        "norm_kind": "layer",
        "activation": "gelu",
        "gated": False,
        "learned_positions": True,
    },
    "post-norm, partial rope": {
        "layers": (replace(FULL, norms="post", rope=PARTIAL), replace(FULL, norms="post", rope=None)),
        "qk_norm": "wide",
    },
}


def decoder(options: dict[str, Any]) -> Decoder:
    config = ModelConfig(
        family="test", vocab_size=VOCAB, hidden_size=48, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, norm_eps=1e-5, max_position_embeddings=64,
        tie_word_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False, **options,
    )  # fmt: skip
    made = Decoder.build(config, ReferenceOps(), torch.float32, torch.device("cpu"), 64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return made


class Cache:
    """The keys and values of some sequences, and the logits of more tokens of them."""

    def __init__(self, model: Decoder, ops: Ops, sequences: list[list[int]]) -> None:
        self.model, self.sequences = model.with_ops(ops), sequences
        shape = (5 * len(sequences), BLOCK, 2, 32)
        self.caches = [[torch.full(shape, torch.nan) for _ in range(2)] for _ in "kv"]
        self.done = [0] * len(sequences)

    @torch.no_grad()
    def run(self, counts: list[int]) -> list[Tensor]:
        """The logits of the next `counts[i]` tokens of sequence i."""
        ids = [s[d : d + n] for s, d, n in zip(self.sequences, self.done, counts, strict=True)]
        self.done = [d + n for d, n in zip(self.done, counts, strict=True)]
        tables = [list(range(5 * i, 5 * i + 5)) for i in range(len(self.sequences))]
        meta = make_meta(tables, counts, self.done, BLOCK)
        hidden = self.model(torch.tensor([i for part in ids for i in part]), *self.caches, meta)
        return list(self.model.logits(hidden).split(counts))


SEQUENCES = [
    torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (11, 7, 1)
]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_references(family):
    model, counts = decoder(FAMILIES[family]), [len(s) for s in SEQUENCES]
    found, expected = (Cache(model, ops, SEQUENCES).run(counts) for ops in (SimtOps(), ReferenceOps()))
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-3, atol=1e-3)
    assert torch.cat(expected).std() > 0.1, "control: the logits differ from each other"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_has_the_same_bits_alone_chunked_and_decoded(family):
    model, ops = decoder(FAMILIES[family]), SimtOps()
    batched = Cache(model, ops, SEQUENCES).run([len(s) for s in SEQUENCES])
    for sequence, whole in zip(SEQUENCES[:2], batched[:2], strict=True):
        alone = Cache(model, ops, [sequence])
        steps = [alone.run([n])[0] for n in (3, 2, 1, 1)]
        assert torch.equal(torch.cat(steps), whole[:7])
