"""`LLM(quantization=..., backend="simt")`: the CUDA kernels of quantised matrices in an engine (C2, C7).

The control of test_quantized.py, activations with a scale for the whole batch, needs no kernel of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from company import GREEDY, PROMPTS, SHAPE, answers, bits, same
from drafting import scripted
from families import make_folder

from minillm import LLM
from minillm.config.quantization import QUANTIZATIONS, SCHEMES
from minillm.ops.contract import PackedWeight
from minillm.ops.simt import flavour, profile, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

WORLDS: dict[str, dict[str, Any]] = {
    "in chunks of 7": {"prefill_chunk": 7},
    "three at a time, ragged": {"max_num_seqs": 3, "max_num_batched_tokens": 61},
    "op by op": {"parts": {"attention": None}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.config(**SHAPE)
    return tiny.make_folder(
        tmp_path_factory.mktemp("simt") / "llama", config, tensors=tiny.weights(config, scale=0.15)
    )


def load(folder: Path, scheme: str, **options: Any) -> LLM:
    return tiny.load(folder, **({"backend": "simt", "kv_memory": "4MiB", "quantization": scheme} | options))


@pytest.mark.parametrize(
    ("scheme", "dtype"), [("int4", "bfloat16"), ("int8", "float32"), ("fp8", "bfloat16"), ("w4a8", "float32")]
)
def test_alone_or_in_company(folder: Path, scheme: str, dtype: str) -> None:
    alone = load(folder, scheme, dtype=dtype)
    expected = [answers(alone, [prompt])[0] for prompt in PROMPTS]
    again = alone.generate(PROMPTS, GREEDY)
    assert same(expected, map(bits, again)), "with every prompt's prefix in the cache"
    for name, options in WORLDS.items():
        if name == "op by op":
            ops = alone.engine.model.decoder.ops
            options = {"parts": {"attention": ops.paged_attention}}
        assert same(expected, answers(load(folder, scheme, dtype=dtype, **options), PROMPTS)), name
    drafting = load(folder, scheme, dtype=dtype, parts=scripted(again, 0.7), adaptive_draft=False)
    drafted = drafting.generate(PROMPTS, GREEDY)
    assert same(expected, map(bits, drafted)), "drafts"
    assert sum(output.metrics.drafted for output in drafted) > 0
    assert sum(output.metrics.accepted for output in drafted) > 0


@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_tokens_and_logits_are_those_of_the_cpu(folder: Path, scheme: str) -> None:
    """The greedy tokens of the native kernels, and their logits within rounding."""
    simulated, native = load(folder, scheme), load(folder, scheme, backend="native")
    found, exact = (answers(llm, PROMPTS[:3]) for llm in (simulated, native))
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in exact]
    logits = [llm.logits(PROMPTS[3]) for llm in (simulated, native)]
    if SCHEMES[scheme].layers.int8_x:  # an activation halfway between two codes may get either
        wrong = (logits[0] - logits[1]).abs().amax(dim=1)
        assert (wrong < 1e-4).sum() >= 4 and wrong.max() < 0.3
        return
    assert torch.allclose(*logits, atol=2e-4, rtol=1e-3)
    plain = tiny.load(folder, backend="native").logits(PROMPTS[3])
    assert not torch.allclose(logits[0], plain, atol=2e-4, rtol=1e-3), (
        "the control: rounding the weights shows"
    )


@pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
def test_a_pass_is_free_of_races_and_runs_the_quantised_kernels(folder: Path) -> None:
    llm = load(folder, "int4", dtype="bfloat16")
    with flavour("check"), schedule(reverse=True), profile() as p:
        found = answers(llm, [PROMPTS[1]])
    assert same(found, answers(load(folder, "int4", dtype="bfloat16"), [PROMPTS[1]]))
    steps, layers = 4, 2
    assert p["linear_q1"].launches == (4 * layers + 1) * steps
    assert p["gather_codes"].launches == steps
    assert not {"linear_l2", "linear_l3", "linear_l5"} & set(p.kernels)


def test_experts(tmp_path: Path) -> None:
    """The experts' matrices are quantised, the router is not; alone or in company, and as on the CPU."""
    made = make_folder(tmp_path / "model", "qwen3_moe")
    llm = load(made, "int4")
    layer = next(w for w in llm.engine.model.decoder.weights().layers if w.expert_down is not None)
    assert layer.expert_down is not None and layer.router is not None
    assert isinstance(layer.expert_down.weight, PackedWeight) and not isinstance(
        layer.router.weight, PackedWeight
    )
    expected = [answers(llm, [prompt])[0] for prompt in PROMPTS[:3]]
    assert same(expected, answers(llm, PROMPTS[:3]))
    native = load(made, "int4", backend="native")
    assert torch.allclose(llm.logits(PROMPTS[2]), native.logits(PROMPTS[2]), atol=2e-4, rtol=1e-3)
