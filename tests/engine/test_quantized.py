"""Quantised weights: the same bits in any batch and under any schedule (C2, C7, C11), for every scheme.

The control is an activation scale for the whole batch, which is what a fast int8 product would like to have:
with it a row's numbers depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import drafting
import pytest
import tiny
import torch
from company import GREEDY, PROMPTS, WIDE, answers, check_company, decoded_and_prefilled, same, threads
from families import make_folder
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.config import EngineConfig
from minillm.config.quantization import QUANTIZATIONS, SCHEMES
from minillm.engine.parts import Parts
from minillm.engine.record import kv_envelope
from minillm.errors import OutOfMemory, UsageError, WeightsError
from minillm.model.loader import load_model
from minillm.model.memory import rope_bytes, weight_bytes
from minillm.model.quantization import filling
from minillm.model.quantization.rounding import quantize_rows
from minillm.ops.contract import PackedWeight
from minillm.ops.quantized import QuantizedMatrix

CASES = [*((scheme, "bfloat16") for scheme in QUANTIZATIONS), ("int8", "float32"), ("int4", "float32")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cfg = tiny.config(**WIDE)
    return tiny.make_folder(
        tmp_path_factory.mktemp("quantized") / "model", cfg, tensors=tiny.weights(cfg, scale=0.1)
    )


def load(folder: Path, scheme: str | None, **options: Any) -> LLM:
    return tiny.load(folder, **({"kv_memory": "64MiB", "quantization": scheme} | options))


@pytest.mark.parametrize(("scheme", "dtype"), CASES)
def test_alone_or_in_company(folder: Path, cpu_isa: str, scheme: str, dtype: str) -> None:
    check_company(partial(load, folder, scheme, dtype=dtype, backend="native"))


@pytest.mark.parametrize(("scheme", "dtype"), CASES)
def test_decoded_or_prefilled(folder: Path, cpu_isa: str, scheme: str, dtype: str) -> None:
    loading = partial(load, folder, scheme, dtype=dtype, backend="native")
    assert torch.equal(*decoded_and_prefilled(loading, PROMPTS[2], 8))


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8", "w4a8"])
def test_number_of_threads(folder: Path, cpu_isa: str, scheme: str) -> None:
    llm = load(folder, scheme, dtype="bfloat16", backend="native", prefix_caching=False)
    with threads(1):
        expected = answers(llm, PROMPTS)
    for count in (2, 3):
        with threads(count):
            assert same(expected, answers(llm, PROMPTS)), f"{count} threads"
            assert same(expected[2:3], answers(llm, PROMPTS[2:3])), f"{count} threads, alone"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return drafting.make_pair(tmp_path_factory.mktemp("drafts"))


@pytest.mark.parametrize(("scheme", "dtype"), CASES)
def test_speculation_changes_no_bit(pair: tuple[Path, Path], scheme: str, dtype: str) -> None:
    """The target is quantised, the draft model is not. Before a run every slot of both caches is NaN."""
    loading = partial(drafting.load, pair[0], quantization=scheme, dtype=dtype)
    params = drafting.mixed_params(len(PROMPTS), 8, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
    plain = loading().generate(PROMPTS, params)
    model = {"draft_model": str(pair[1]), "num_draft_tokens": 3}
    drafters: dict[str, dict[str, Any]] = {
        "often right": {"parts": drafting.scripted(plain, 0.7)},
        "model": model,
        "tree": model | {"draft_tree": (3, 1)},
    }
    for name, options in drafters.items():
        found = loading(**options).generate(PROMPTS, params)
        assert drafting.differing(found, plain) == [], name
        assert sum(output.metrics.drafted for output in found) > 0, name
        assert sum(output.metrics.accepted for output in found) > 0, name


def int8_product(scale_of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A product of int8 activations and plain weights; sums of whole numbers in float64 are exact."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        scale = scale_of(x.double()).clamp_min(1e-30) / 127
        of_weight = weight.double().abs().amax(dim=1) / 127
        codes = (x.double() / scale).round(), (weight.double() / of_weight.unsqueeze(1)).round()
        y = codes[0] @ codes[1].T * scale * of_weight
        return (y if bias is None else y + bias).to(x.dtype)

    return linear


SCOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "a row": lambda x: x.abs().amax(dim=1, keepdim=True),
    "the batch": lambda x: x.abs().amax(),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_control_a_scale_for_the_whole_batch(folder: Path, scope: str) -> None:
    """The check of company, of decoding against prefill and of speculation each find it."""
    linear = int8_product(SCOPES[scope])

    def loading(parts: dict[str, Any] | None = None, **options: Any) -> LLM:
        parts = {"linear": linear} | (parts or {})
        return load(folder, "int8", parts=parts, backend="native", **options)

    if scope == "a row":
        check_company(loading)
    else:
        with pytest.raises(AssertionError):
            check_company(loading)
    assert torch.equal(*decoded_and_prefilled(loading, PROMPTS[2], 8)) == (scope == "a row")
    plain = loading().generate(PROMPTS, GREEDY)
    drafted = loading(drafting.scripted(plain, 0.7), adaptive_draft=False).generate(PROMPTS, GREEDY)
    assert (drafting.differing(drafted, plain) == []) == (scope == "a row")


def agree(found: Tensor, exact: Tensor, scheme: str) -> bool:
    """Whether logits are equal within rounding.

    An activation halfway between two codes may get either, and all later tokens see it. So with activations
    in int8 some rows must agree, and the others within what the rounding of activations costs.
    """
    if not SCHEMES[scheme].layers.int8_x:
        return torch.allclose(found, exact, atol=2e-4, rtol=1e-3)
    wrong = (found - exact).abs().amax(dim=1)
    return bool((wrong < 1e-4).sum() >= 5 and wrong.max() < 0.15)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("mixture"), "mixtral")


@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_experts(mixture: Path, cpu_isa: str, scheme: str) -> None:
    """The experts' matrices are quantised, the router is not; the numbers are the reference's."""
    llm = load(mixture, scheme, backend="native")
    weights = llm.engine.model.decoder.weights().layers[0]
    assert weights.expert_down is not None and weights.router is not None
    assert isinstance(weights.expert_down.weight, PackedWeight) and weights.expert_down.weight.form
    assert isinstance(weights.router.weight, PackedWeight) and weights.router.weight.form is None
    exact = load(mixture, scheme, backend="reference").logits(PROMPTS[2])
    assert agree(llm.logits(PROMPTS[2]), exact, scheme)


@pytest.mark.parametrize(("scheme", "dtype"), CASES)
def test_experts_alone_or_in_company(mixture: Path, cpu_isa: str, scheme: str, dtype: str) -> None:
    check_company(partial(load, mixture, scheme, dtype=dtype, backend="native"))


def tied_and_copied(folder: Path) -> tuple[Path, Path]:
    """A model whose head is the embedding, and one whose head is a copy of it."""
    tied, copied = (tiny.config(**WIDE, tie_word_embeddings=own) for own in (True, False))
    tensors = tiny.weights(tied, scale=0.1)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    return (
        tiny.make_folder(folder / "tied", tied, tensors=tensors),
        tiny.make_folder(folder / "copied", copied, tensors=tensors | head),
    )


@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_a_tied_head_reads_the_packed_embedding(tmp_path: Path, scheme: str) -> None:
    """It has the numbers of a head of its own, and its bytes are there once."""
    tied, copied = tied_and_copied(tmp_path)
    loading = partial(load, tied, scheme, dtype="bfloat16", backend="native")
    expected = check_company(loading)
    two = load(copied, scheme, dtype="bfloat16", backend="native")
    assert same(expected, answers(two, PROMPTS))

    models = loading().engine.model, two.engine.model
    weights, outside = models[0].decoder.weights(), SCHEMES[scheme].outside
    assert weights.head is weights.embedding
    assert isinstance(weights.head, PackedWeight) and weights.head.form == outside
    there = [sum(matrix.nbytes for matrix in model.decoder.matrices) for model in models]
    assert there[1] - there[0] == weights.head.nbytes
    assert models[0].decoder.step_bytes() == models[1].decoder.step_bytes(), "a lookup reads one row"
    estimates = [weight_bytes(model.config, torch.bfloat16) for model in models]
    assert estimates[1] - estimates[0] == outside.nbytes(tiny.VOCAB_SIZE, WIDE["hidden_size"])


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


def test_memory_for_four_bits_and_not_for_sixteen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is refused, and the hint names quantization; int4 loads with exactly its estimate free."""
    models = [load(folder, scheme, dtype="bfloat16").engine.model for scheme in (None, "int4")]
    plain, packed = (
        weight_bytes(model.config, model.dtype) + rope_bytes(model.config, model.max_model_len)
        for model in models
    )

    def set_free(nbytes: int) -> None:
        monkeypatch.setattr("minillm.model.memory.free_memory", lambda device: nbytes)

    set_free((plain + packed) // 2)
    with pytest.raises(OutOfMemory, match="in bfloat16") as refused:
        load(folder, None, dtype="bfloat16")
    assert "quantization" in str(refused.value)
    assert load(folder, "int4", dtype="bfloat16").generate([[5]], GREEDY)
    set_free(packed)
    load(folder, "int4", dtype="bfloat16")
    set_free(packed - 1)
    with pytest.raises(OutOfMemory):
        load(folder, "int4", dtype="bfloat16")


@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_the_estimate_is_what_is_allocated(folder: Path, scheme: str) -> None:
    """But for scales that fill a line of memory."""
    model = load(folder, scheme, dtype="bfloat16", backend="native").engine.model
    norms = sum(p.nbytes for p in model.decoder.parameters())
    there = sum(matrix.nbytes for matrix in model.decoder.matrices) + norms
    assert 1 <= there / weight_bytes(model.config, torch.bfloat16) < 1.05


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_weights_that_cannot_be_quantised(tmp_path: Path, scheme: str, bad: float) -> None:
    made = with_a_weight(tmp_path / "model", bad)
    if bad == 3e38 and scheme in ("int8-channel", "fp8"):
        load(made, scheme)  # its scale is a float: the test below
        return
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.down_proj\.weight cannot be quantised"):
        load(made, scheme)


def with_a_weight(path: Path, weight: float) -> Path:
    """A model whose second `down_proj` has `weight` in row 3."""
    tensors = tiny.weights(tiny.config())
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = weight
    return tiny.make_folder(path, tensors=tensors)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("scheme", ["int8-channel", "fp8"])
def test_a_weight_that_only_a_wide_scale_holds(tmp_path: Path, scheme: str, backend: str) -> None:
    """It rounds the others of its row to zero, and no other row; where activations overflow, that is said."""
    loaded = [load(with_a_weight(tmp_path / str(w), w), scheme, backend=backend) for w in (3e38, 0.0)]
    found, plain = (
        llm.engine.model.decoder.ops.unpack_weight(llm.engine.model.decoder.weights().layers[1].down.weight)
        for llm in loaded
    )
    assert float(found[3, 5]) == pytest.approx(3e38, rel=1e-6) and found[3].count_nonzero() == 1
    others = torch.arange(len(found)) != 3
    assert torch.equal(found[others], plain[others]) and plain[3].count_nonzero() > 1
    answers = loaded[0].generate([[token] for token in range(1, 9)], SamplingParams(4, temperature=0.0))
    assert all(a.finish_reason != "error" or "logits are NaN or infinite" in str(a.error) for a in answers)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("scheme", ["w8a8", "int4"])
def test_replaced_parts(folder: Path, scheme: str, backend: str) -> None:
    """A replaced `linear` gets plain matrices; with any other part the product stays the quantised one."""
    quantized = load(folder, scheme, backend=backend)
    expected, ops = quantized.logits(PROMPTS[3]), quantized.engine.model.decoder.ops
    other = load(folder, scheme, backend=backend, parts={"attention": ops.paged_attention})
    assert torch.equal(other.logits(PROMPTS[3]), expected)
    seen = list[type]()

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(type(weight))
        return torch.nn.functional.linear(x, weight, bias)

    found = load(folder, scheme, backend=backend, parts={"linear": linear}).logits(PROMPTS[3])
    assert set(seen) == {Tensor}
    rounds = SCHEMES[scheme].layers.int8_x  # the activations, which this `linear` does not
    assert torch.allclose(found, expected, atol=2e-4, rtol=1e-3) != rounds


def test_options(folder: Path) -> None:
    with pytest.raises(UsageError, match="quantization='int3' is not known"):
        load(folder, "int3")


def test_with_keys_and_values_in_8_bits_too(folder: Path, cpu_isa: str) -> None:
    loading = partial(load, folder, "int4", backend="native", kv_dtype="int8")
    expected = check_company(loading)
    plain = load(folder, "int4", backend="native")
    blocks = [llm.engine.stats()["num_blocks"] for llm in (loading(), plain)]
    assert blocks[0] > 1.75 * blocks[1], "head_dim is 32"
    assert not same(expected, answers(plain, PROMPTS)), "the control: rounded keys and values show"
