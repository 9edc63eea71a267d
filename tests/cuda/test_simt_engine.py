"""`LLM(backend="simt")`: a model runs on the CUDA kernels, with the same bits in any batch."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import drafting
import pytest
import tiny
import torch
from company import DTYPES, GREEDY, PROMPTS, SHAPE, answers, prefilled, same
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.errors import BackendError, UnsupportedModel
from minillm.ops.simt import SimtOps, flavour, flavours, profile
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.config(**SHAPE)
    return tiny.make_folder(
        tmp_path_factory.mktemp("simt") / "llama", config, tensors=tiny.weights(config, scale=0.15)
    )


def load(folder: Path, **options: object) -> LLM:
    return tiny.load(folder, **({"backend": "simt", "kv_memory": "4MiB"} | options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_chunked_and_decoded_are_the_same_bits(folder, dtype):
    whole, chunked = load(folder, dtype=dtype), load(folder, dtype=dtype, prefill_chunk=7)
    batched = answers(whole, PROMPTS)
    assert same(batched, [answers(whole, [prompt])[0] for prompt in PROMPTS])
    assert same(batched, answers(chunked, PROMPTS))
    for prompt, (tokens, decoded) in zip(PROMPTS, batched, strict=True):
        again = prefilled(whole, prompt + tokens[:-1])
        assert torch.equal(again, prefilled(chunked, prompt + tokens[:-1]))
        assert torch.equal(decoded, again[len(prompt) - 1 :])


def test_control_another_order_of_summation_is_noticed(folder):
    """The naive attention, in prefill only, gives right results with other bits than decode."""
    ops = SimtOps()

    def attention(q: Tensor, *others: object) -> Tensor:
        rung = "v1" if q.shape[0] > 1 else None
        return ops.paged_attention(q, *others, rung=rung)

    llm = load(folder, parts={"attention": attention})
    prompt, (tokens, decoded) = PROMPTS[3], answers(load(folder), [PROMPTS[3]])[0]
    again = prefilled(llm, prompt + tokens[:-1])[len(prompt) - 1 :]
    assert not torch.equal(decoded, again)
    torch.testing.assert_close(decoded, again)


@pytest.mark.parametrize("window", [None, 20])
def test_logits_are_the_references(tmp_path, window):
    config = tiny.mistral_config(window, **SHAPE) if window else tiny.config(**SHAPE)
    folder = tiny.make_folder(tmp_path / "model", config, tensors=tiny.weights(config, scale=0.15))
    ids = PROMPTS[3]
    torch.testing.assert_close(load(folder).logits(ids), tiny.load(folder).logits(ids), rtol=2e-4, atol=2e-4)


@pytest.mark.skipif("check" not in flavours(), reason="the asan flavour neither checks races nor counts")
def test_a_whole_generation_under_check_is_clean_and_counted(folder):
    llm = load(folder)
    with flavour("check"), profile() as p:
        tokens = llm.generate([PROMPTS[1]], GREEDY)[0].token_ids
    assert tokens == answers(load(folder), [PROMPTS[1]])[0][0]
    layers = 2
    steps = 1 + (GREEDY.max_tokens - 1)
    assert p["attention_v2"].launches == layers
    assert p["decode_d1"].launches == layers * (steps - 1)
    assert p["rope_and_cache"].launches == layers * steps
    assert p["linear_l2"].launches == (4 * layers + 1) * steps


def counting():
    """A profile; None with AddressSanitizer, where the simulator counts nothing."""
    return nullcontext() if sanitizing() else profile()


def test_drafts_are_verified_by_the_cuda_kernels(folder):
    """Contract C7, with different kernels for one row and several rows, and verification kernels."""
    params = [
        SamplingParams(max_tokens=6, temperature=0.8 * (i % 2), seed=i, ignore_eos=True, logprobs=5)
        for i in range(len(PROMPTS))
    ]
    known = load(folder).generate(PROMPTS, params)
    for parts in (drafting.scripted(known), drafting.randomly()):
        llm = load(folder, parts=parts, num_draft_tokens=3, adaptive_draft=False)
        with counting() as p:
            assert drafting.differing(llm.generate(PROMPTS, params), known) == []
        assert p is None or p["verify_coupled"].launches > 0
    drafted = {"draft_model": folder, "num_draft_tokens": 3, "adaptive_draft": False}
    twin = load(folder, **drafted, draft_tree=(2, 1)).generate(PROMPTS, params)
    assert drafting.differing(twin, known) == []
    rejecting = load(folder, **drafted, draft_verification="rejection")
    with counting() as p:
        found = rejecting.generate(PROMPTS, params)
    assert all(o.metrics.accepted == o.metrics.drafted for o in found), "p is q"
    assert p is None or p["verify_draft"].launches > 0


def test_text_comes_out(folder):
    output = load(folder).generate("once upon a time", SamplingParams(max_tokens=5, temperature=0.0))[0]
    assert (
        output.text
        == load(folder, backend="reference")
        .generate("once upon a time", SamplingParams(max_tokens=5, temperature=0.0))[0]
        .text
    )
    assert output.envelope["backend"] == "simt"


def test_what_has_no_kernel_is_refused_when_the_model_is_loaded(tmp_path):
    folder = tiny.make_folder(tmp_path / "model")  # head_dim 8
    with pytest.raises(UnsupportedModel, match="head_dim 8"):
        load(folder)
    with pytest.raises(BackendError):
        load(folder, device="cuda")
