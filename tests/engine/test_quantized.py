"""Quantised weights: the same bits in any batch and under any schedule (C2, C7, C11), for every scheme.

The control is an activation scale for the whole batch, which is what a fast int8 product would like to have:
with it a row's numbers depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from company import PROMPTS, WIDE, answers, same
from families import make_folder
from torch import Tensor

from minillm import LLM
from minillm.config import EngineConfig
from minillm.config.quantization import QUANTIZATIONS, SCHEMES
from minillm.engine.parts import Parts
from minillm.engine.record import kv_envelope
from minillm.errors import UsageError, WeightsError
from minillm.model.loader import load_model
from minillm.model.quantization import filling
from minillm.model.quantization.rounding import quantize_rows
from minillm.ops.contract import PackedWeight
from minillm.ops.quantized import QuantizedMatrix

WORLDS: dict[str, dict[str, Any]] = {
    "in one batch": {},
    "in chunks, three at a time, few blocks": {
        "prefill_chunk": 7,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 61,
        "kv_memory": "512KiB",
    },
    "drafts": {"draft_model": "ngram", "num_draft_tokens": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cfg = tiny.config(**WIDE)
    return tiny.make_folder(
        tmp_path_factory.mktemp("quantized") / "model", cfg, tensors=tiny.weights(cfg, scale=0.1)
    )


def load(folder: Path, scheme: str, **options: Any) -> LLM:
    return tiny.load(folder, **({"kv_memory": "64MiB", "quantization": scheme} | options))


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [*((scheme, "bfloat16") for scheme in QUANTIZATIONS), ("int8", "float32"), ("int4", "float32")],
)
def test_alone_or_in_company(folder: Path, cpu_isa: str, scheme: str, dtype: str) -> None:
    alone = load(folder, scheme, dtype=dtype, backend="native")
    expected = [answers(alone, [prompt])[0] for prompt in PROMPTS]
    again = answers(alone, PROMPTS)  # with every prompt's prefix in the cache
    assert same(expected, again)
    for name, options in WORLDS.items():
        found = answers(load(folder, scheme, dtype=dtype, backend="native", **options), PROMPTS)
        assert same(expected, found), name


def int8_product(scale_of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A product of int8 activations and plain weights; sums of whole numbers in float64 are exact."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        scale = scale_of(x.double()).clamp_min(1e-30) / 127
        of_weight = weight.double().abs().amax(dim=1) / 127
        codes = (x.double() / scale).round(), (weight.double() / of_weight.unsqueeze(1)).round()
        y = codes[0] @ codes[1].T * scale * of_weight
        return (y if bias is None else y + bias).to(x.dtype)

    return linear


@pytest.mark.parametrize("scope", ["a row", "the batch"])
def test_control_a_scale_for_the_whole_batch(folder: Path, scope: str) -> None:
    by_row = int8_product(lambda x: x.abs().amax(dim=1, keepdim=True))
    by_batch = int8_product(lambda x: x.abs().amax())
    options = {"parts": {"linear": by_row if scope == "a row" else by_batch}, "backend": "native"}
    alone = load(folder, "int8", **options)
    expected = [answers(alone, [prompt])[0] for prompt in PROMPTS]
    assert same(expected, answers(load(folder, "int8", **options), PROMPTS)) == (scope == "a row")


def agree(found: Tensor, exact: Tensor, scheme: str) -> bool:
    """Whether logits are equal within rounding.

    An activation halfway between two codes may get either, and all later tokens see it. So with activations
    in int8 some rows must agree, and the others within what the rounding of activations costs.
    """
    if not SCHEMES[scheme].layers.int8_x:
        return torch.allclose(found, exact, atol=2e-4, rtol=1e-3)
    wrong = (found - exact).abs().amax(dim=1)
    return bool((wrong < 1e-4).sum() >= 5 and wrong.max() < 0.15)


@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_experts(tmp_path: Path, cpu_isa: str, scheme: str) -> None:
    """The experts' matrices are quantised, the router is not; alone or in company, and by the reference."""
    made = make_folder(tmp_path / "model", "mixtral")
    llm = load(made, scheme, backend="native")
    weights = llm.engine.model.decoder.weights().layers[0]
    assert weights.expert_down is not None and weights.router is not None
    assert isinstance(weights.expert_down.weight, PackedWeight) and weights.expert_down.weight.form
    assert isinstance(weights.router.weight, PackedWeight) and weights.router.weight.form is None
    expected = [answers(llm, [prompt])[0] for prompt in PROMPTS]
    assert same(expected, answers(load(made, scheme, backend="native"), PROMPTS))
    exact = load(made, scheme, backend="reference").logits(PROMPTS[2])
    assert agree(llm.logits(PROMPTS[2]), exact, scheme)


@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_native_equals_the_reference_within_rounding(folder: Path, cpu_isa: str, scheme: str) -> None:
    native, exact = (
        load(folder, scheme, backend=name).logits(PROMPTS[3]) for name in ("native", "reference")
    )
    plain = tiny.load(folder, backend="reference").logits(PROMPTS[3])
    assert agree(native, exact, scheme)
    assert not torch.allclose(exact, plain, atol=2e-4, rtol=1e-3), "the control: rounding the weights shows"


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_every_row_is_quantised_into_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, backend: str
) -> None:
    """Also where a checkpoint has matrices transposed, or all experts in one tensor; a few rows at a time."""
    made = make_folder(tmp_path, family)
    monkeypatch.setattr(filling, "_ROUNDED", 700)
    plain = tiny.load(made, backend="reference").engine.model.decoder
    decoder = load(made, "int4", backend=backend).engine.model.decoder
    compared = 0
    for exact, found in zip(plain.matrices, decoder.matrices, strict=True):
        if isinstance(found, PackedWeight | QuantizedMatrix) and found.form is not None:
            assert isinstance(exact, Tensor)
            expected = quantize_rows(exact, found.form).dequantize()
            kept = isinstance(found, QuantizedMatrix)
            assert torch.equal(found.dequantize() if kept else decoder.ops.unpack_weight(found), expected)
            assert not torch.equal(expected[1:], expected[:-1])
            compared += 1
    assert compared >= 2 * 4 + 1


def test_envelopes_differ(folder: Path) -> None:
    """Two schemes share no cached block; the same scheme twice does."""

    def digest(scheme: str | None) -> str:
        config = EngineConfig(quantization=scheme, device="cpu", dtype="float32")  # type: ignore[arg-type]
        return kv_envelope(load_model(folder, config), config, Parts()).digest

    found = [digest(scheme) for scheme in (None, *QUANTIZATIONS)]
    assert len(set(found)) == len(found) and digest("int4") == found[1 + QUANTIZATIONS.index("int4")]


def test_bytes(folder: Path) -> None:
    """What a step reads: int8 less than half of bfloat16's share, int4 less than int8."""
    read = {
        scheme: load(folder, scheme, dtype="bfloat16", backend="native").engine.model.decoder.step_bytes()
        for scheme in (None, "int8", "int4", "int4-g64")
    }
    assert read["int4-g64"] < read["int4"] < read["int8"] < 0.6 * read[None]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_weights_that_cannot_be_quantised(tmp_path: Path, scheme: str, bad: float) -> None:
    tensors = tiny.weights(tiny.config())
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = bad
    made = tiny.make_folder(tmp_path / "model", tensors=tensors)
    if bad == 3e38 and scheme in ("int8-channel", "fp8"):
        return  # fp32 scales hold it
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.down_proj\.weight cannot be quantised"):
        load(made, scheme)


def test_options(folder: Path) -> None:
    with pytest.raises(UsageError, match="quantization='int3' is not known"):
        load(folder, "int3")


def test_with_keys_and_values_in_8_bits_too(folder: Path, cpu_isa: str) -> None:
    alone = load(folder, "int4", backend="native", kv_dtype="int8")
    expected = [answers(alone, [prompt])[0] for prompt in PROMPTS]
    for name, options in WORLDS.items():
        found = load(folder, "int4", backend="native", **({"kv_dtype": "int8"} | options))
        assert same(expected, answers(found, PROMPTS)), name
    plain = load(folder, "int4", backend="native")
    assert alone.engine.stats()["num_blocks"] > 1.75 * plain.engine.stats()["num_blocks"], "head_dim is 32"
    assert not same(expected, answers(plain, PROMPTS)), "the control: rounded keys and values show"
