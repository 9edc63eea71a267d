"""The decoder with other ops, its weights by name, and the layers it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from native import REFERENCE
from torch import Tensor

from minillm import LLM
from minillm.config import EngineConfig
from minillm.model.decoder import Decoder
from minillm.model.loader import LoadedModel, load_model
from minillm.ops.contract import PackedWeight
from minillm.ops.cpu import CpuOps
from minillm.ops.reference import ReferenceOps
from minillm.ops.swapped import SwappedOps

PROMPT = [5, 9, 17, 250, 3, 3, 41]
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A bfloat16 checkpoint, so that float32 matrices are stored in 16 bits."""
    config = tiny.config(tie_word_embeddings=request.param)
    tensors = {name: t.bfloat16() for name, t in tiny.weights(config).items()}
    return tiny.make_folder(tmp_path / "model", config, tensors=tensors)


def load(folder: Path, dtype: str, ops: Any = None) -> LoadedModel:
    return load_model(folder, EngineConfig(dtype=dtype, device="cpu"), ops or CpuOps())


def pointers(decoder: Decoder) -> list[int]:
    vectors = [p.data_ptr() for p in decoder.parameters()]
    return (
        vectors
        + [m.data.data_ptr() for m in decoder.matrices]
        + [t.data_ptr() for rope in decoder.ropes for t in rope]
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_ops_see_the_same_tensors(model_folder: Path, dtype: str) -> None:
    decoder = load(model_folder, dtype).decoder
    ops = SwappedOps(decoder.ops, attention=REFERENCE.paged_attention)
    other = decoder.with_ops(ops)
    assert other is not decoder and other.config is decoder.config
    assert other.ops is ops and isinstance(decoder.ops, CpuOps)
    assert {m.ops for m in other.modules() if hasattr(m, "ops")} == {ops}
    assert pointers(other) == pointers(decoder)
    assert all(isinstance(matrix, PackedWeight) for matrix in other.matrices)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replaced_linear_is_given_plain_matrices(model_folder: Path, dtype: str) -> None:
    """They have the checkpoint's bits, although the model was loaded packed."""
    seen: list[Tensor] = []

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(weight)
        return F.linear(x, weight, bias)

    decoder = load(model_folder, dtype).decoder
    plain = load(model_folder, dtype, ReferenceOps()).decoder
    other = decoder.with_ops(SwappedOps(decoder.ops, linear=linear))
    assert all(torch.equal(a, b) for a, b in zip(other.matrices, plain.matrices, strict=True))
    assert all(isinstance(matrix, PackedWeight) for matrix in decoder.matrices)
    llm = LLM(model_folder, dtype=dtype, device="cpu", backend="native", parts={"linear": linear})
    expected = LLM(model_folder, dtype=dtype, device="cpu", backend="reference").logits(PROMPT)
    logits = llm.logits(PROMPT)
    assert len(seen) == 4 * 2 + 1 and all(type(weight) is Tensor for weight in seen)
    assert torch.allclose(logits, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_ops_without_packing_take_the_whole_model(model_folder: Path) -> None:
    decoder = load(model_folder, "float32").decoder.with_ops(ReferenceOps())
    plain = load(model_folder, "float32", ReferenceOps()).decoder
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(decoder.logits(x), plain.logits(x))
    assert pointers(plain.with_ops(plain.ops)) == pointers(plain)


def test_weights_by_name_are_the_decoders_own(model_folder: Path) -> None:
    decoder = load(model_folder, "float32").decoder
    weights = decoder.weights()
    assert len(weights.layers) == decoder.config.num_hidden_layers
    named = [weight for layer in weights.layers for weight in layer.matrices()]
    head = [] if decoder.lm_head is None else [weights.head]
    assert [*named, weights.embedding, *head] == decoder.matrices
    assert (weights.head is weights.embedding) == decoder.config.tie_word_embeddings
    assert weights.ropes is decoder.ropes
