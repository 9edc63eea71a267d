"""A whole pass of every family in C++ has the bits of the decoder's loop over single ops.

The families of `helpers/families.py` have between them every part of a layer: norms before, after and on both
sides, LayerNorm, norms over heads and over all heads, partial and missing rotation, windows, softcaps, sinks,
experts, MLPs without a gate, learned positions and every factor. Each family runs in every dtype on every
instruction set, with long and short sequences in one batch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from family_steps import TABLES, Caches, load_decoder, two_steps
from native import make_meta
from torch import Tensor

from minillm import SamplingParams
from minillm.model.decoder import Decoder
from minillm.model.families import FAMILIES
from minillm.ops.contract import AttentionMetadata, Ops
from minillm.ops.cpu import CpuOps
from minillm.ops.reference import ReferenceOps
from minillm.ops.sampling import SamplingBatch, noise_key

DTYPES = ["float32", "bfloat16", "float16"]
Q_LENS, KV_LENS = [1, 5, 70, 3, 1], [1, 5, 70, 3, 1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("families")
    return {family: families.make_folder(base, family) for family in FAMILIES}


def load(folder: Path, dtype: str, ops: Ops | None = None) -> Decoder:
    return load_decoder(folder, dtype, ops or CpuOps())


def caches(decoder: Decoder) -> Caches:
    """Caches of every layer, full of NaN."""
    c, dtype = decoder.config, decoder.norm.weight.dtype
    shape = 45, 16, c.num_key_value_heads, c.head_dim
    k, v = ([torch.full(shape, math.nan, dtype=dtype) for _ in c.layers] for _ in range(2))
    return k, v


def same(a: Any, b: Any) -> bool:
    """Whether two lists of tensors have the same bits, NaN included."""
    return all(torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0)) for x, y in zip(a, b, strict=True))


def steps() -> list[tuple[Tensor, AttentionMetadata]]:
    """A step that begins five sequences, then one with a single new token for each."""
    return two_steps(Q_LENS, KV_LENS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_has_the_bits_of_single_ops(
    native_ops: CpuOps, folders: dict[str, Path], family: str, dtype: str
) -> None:
    decoder = load(folders[family], dtype)
    by_op, in_one_call, last = (caches(decoder) for _ in range(3))
    fused, dropping = (native_ops.bind(decoder.weights(), *kv) for kv in (in_one_call, last))
    for ids, meta in steps():
        expected = decoder.forward(ids, *by_op, meta)
        assert expected.isfinite().all()
        assert torch.equal(fused.hidden(ids, meta), expected)
        logits = decoder.logits(expected[meta.query_start[1:] - 1])
        assert torch.equal(dropping.last_logits(ids, meta), logits)
    assert same([*by_op[0], *by_op[1]], [*in_one_call[0], *in_one_call[1]])
    assert same([*by_op[0], *by_op[1]], [*last[0], *last[1]])


@pytest.mark.parametrize("shift", [0, 100])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_ahead_are_passes_and_draws(
    native_ops: CpuOps, folders: dict[str, Path], family: str, shift: int
) -> None:
    """The positions of later steps follow that of the last row, which need not be its place in the cache."""
    decoder = load(folders[family], "float32")
    looped, ahead = (native_ops.bind(decoder.weights(), *caches(decoder)) for _ in range(2))
    ids, meta = steps()[0]
    meta = replace(meta, positions=meta.positions + shift)
    keys = [[noise_key(i, 0, level) for level in range(3)] for i in range(5)]
    params = [SamplingParams(temperature=1.0)] * 5
    drawn = ahead.decode_ahead(ids, meta, [3] * 5, keys, SamplingBatch(params, [0] * 5, [()] * 5, 300))
    for level in range(3):
        batch = SamplingBatch(params, [own[level] for own in keys], [()] * 5, 300)
        ids, _, _ = looped.step(ids, meta, batch)
        assert ids.tolist() == [tokens[level] for tokens in drawn]
        meta = make_meta(TABLES, [1] * 5, [length + level + 1 for length in KV_LENS], 16)
        meta = replace(meta, positions=meta.positions + shift)


CHANGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "norm_offset": ("llama", {"norm_offset": 0.5}, {}),
    "activation": ("llama", {"activation": "relu"}, {}),
    "gated": ("gpt2", {"activation": "silu"}, {}),
    "embedding_scale": ("llama", {"embedding_scale": 3.3}, {}),
    "residual_scale": ("llama", {"residual_scale": 0.3}, {}),
    "logits_divisor": ("llama", {"logits_divisor": 7.0}, {}),
    "logits_softcap": ("llama", {"logits_softcap": 0.5}, {}),
    "window": ("llama", {}, {"window": 3}),
    "scale": ("llama", {}, {"scale": 0.4}),
    "softcap": ("llama", {}, {"softcap": 0.1}),
}


NUMBERS = {
    ("llama", "rms_norm_eps"),
    ("gemma2", "attn_logit_softcapping"),
    ("gemma2", "final_logit_softcapping"),
    ("granite", "embedding_multiplier"),
    ("granite", "residual_multiplier"),
    ("granite", "logits_scaling"),
}


@pytest.mark.parametrize(("family", "key"), sorted(NUMBERS))
@pytest.mark.parametrize("value", [1e-20, 1e13, 1e20])
def test_any_number_that_a_config_may_have(family: str, key: str, value: float, tmp_path: Path) -> None:
    """The largest become infinite in float16. Both backends answer, or end the request with one error."""
    folder = families.make_folder(tmp_path, family, **{key: value})
    for dtype in ("float32", "float16"):
        outputs = [
            tiny.load(folder, backend=backend, dtype=dtype).generate([[1, 2, 3]], SamplingParams(2, 0.0))[0]
            for backend in ("native", "reference")
        ]
        native, reference = ((len(output.token_ids), str(output.error)) for output in outputs)
        assert native == reference
        assert dtype == "float16" or outputs[0].token_ids == outputs[1].token_ids


@pytest.mark.parametrize("name", CHANGES)
def test_control_each_number_reaches_the_pass(folders: dict[str, Path], name: str) -> None:
    """A changed number changes the logits, and in the same way op by op."""
    family, of_model, of_layers = CHANGES[name]
    (ids, meta), _ = steps()

    def logits(decoder: Decoder) -> tuple[Tensor, Tensor]:
        last = decoder.forward(ids, *caches(decoder), meta)[meta.query_start[1:] - 1]
        return CpuOps().bind(decoder.weights(), *caches(decoder)).last_logits(ids, meta), decoder.logits(last)

    plain = load(folders[family], "bfloat16")
    layers = tuple(replace(layer, **of_layers) for layer in plain.config.layers)
    changed = Decoder(replace(plain.config, layers=layers, **of_model), CpuOps()).to(torch.bfloat16)
    changed.load_state_dict(load(folders[family], "bfloat16", ReferenceOps()).state_dict())
    changed.ropes = plain.ropes
    changed.prepare()
    fused, by_op = logits(changed)
    assert torch.equal(fused, by_op)
    assert not torch.equal(fused, logits(plain)[0])
