"""The engine on the tensor-core kernels, in the simulator: the same bits in any company, and with drafts.

The models have heads of 64 in 16 bits, so attention_v3, decode_d3 and linear_l5 run. The longest prompt has
two splits of 512 keys.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import drafting
import families
import pytest
import tiny
import torch
from company import GREEDY, answers, prefilled, same
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.ops.simt import SimtOps, flavour, profile
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

counts = pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
HEADS = families.WIDE_HEADS | {"hidden_size": 64}
ONE_LAYER = {"num_hidden_layers": 1, "intermediate_size": 72, "max_position_embeddings": 640}
PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(n)] for i, n in enumerate((1, 7, 66))]
LONG = [(j * 104_729) % 300 for j in range(515)]
PLAIN = {"attention_v2", "decode_d1", "linear_l2", "linear_l3", "linear_experts"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tensor")
    own: dict[str, dict[str, Any]] = {"llama": {}, "mistral": {"sliding_window": 70}}
    made = {
        name: families.make_folder(base, name, **HEADS, **ONE_LAYER, **more) for name, more in own.items()
    }
    experts = HEADS | {"num_hidden_layers": 1, "mlp_only_layers": []}
    return made | {"qwen3_moe": families.make_folder(base, "qwen3_moe", **experts)}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., LLM]:
    def load(family: str = "llama", **options: Any) -> LLM:
        return tiny.load(
            folders[family], **({"backend": "simt", "dtype": "bfloat16", "kv_memory": "1MiB"} | options)
        )

    return load


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_alone_in_a_batch_in_chunks_and_decoded(load, dtype):
    whole = load(dtype=dtype)
    batched = answers(whole, PROMPTS)
    assert same(batched, [answers(whole, [prompt])[0] for prompt in PROMPTS])
    assert same(batched, answers(load(dtype=dtype, prefill_chunk=33), PROMPTS))
    for prompt, (tokens, decoded) in zip(PROMPTS, batched, strict=True):
        again = prefilled(whole, prompt + tokens[:-1])
        assert torch.equal(decoded, again[len(prompt) - 1 :])


@pytest.mark.slow
def test_over_two_splits_in_chunks_and_by_prefix(load):
    """510 tokens and a few more: decode begins in the first split and ends in the second."""
    llm, params = (
        load(),
        SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True, logprobs=tiny.VOCAB_SIZE),
    )
    first = llm.generate([LONG[:510]], params)
    hit = llm.generate([LONG[:510]], params)
    assert hit[0].metrics.cached_tokens > 400
    chunked = load(prefill_chunk=200, prefix_caching=False).generate([LONG[:510], PROMPTS[2]], params)
    assert drafting.differing(hit, first) == drafting.differing(chunked[:1], first) == []


@pytest.mark.parametrize("family", ["mistral", "qwen3_moe"])
def test_windows_and_experts(load, family):
    """A window makes a row begin inside a tile; experts' products have tiles of their own."""
    whole = load(family)
    batched = answers(whole, PROMPTS[1:])
    alone = load(family, prefill_chunk=21)
    assert same(batched, [answers(alone, [prompt])[0] for prompt in PROMPTS[1:]])


def test_preempted(load):
    """A pool too small for four requests that grow: two are put back and computed again."""
    prompts = [[(i * 7 + j * 31) % 300 for j in range(15)] for i in range(4)]
    known = load().generate(prompts, GREEDY)
    small = load(kv_memory=3 * 16 * 2 * 2 * 64 * 2)  # three blocks
    with small.engine.events.record() as events:
        outputs = small.generate(prompts, GREEDY)
    assert drafting.differing(outputs, known) == []
    assert sum(event.kind == "preempt" for event in events) == 2


def test_drafts_change_no_bit(load, folders):
    params = [
        SamplingParams(max_tokens=6, temperature=0.8 * (i % 2), seed=i, ignore_eos=True, logprobs=5)
        for i in range(len(PROMPTS))
    ]
    known = load().generate(PROMPTS, params)
    right, wrong = drafting.scripted(known), drafting.randomly()
    for more in ({"parts": right}, {"parts": wrong}, {"draft_model": folders["llama"], "draft_tree": (2, 1)}):
        llm = load(**more, num_draft_tokens=3, adaptive_draft=False)
        assert drafting.differing(llm.generate(PROMPTS, params), known) == []


@counts
def test_which_kernels_run(load):
    with flavour("check"), profile() as p:
        load("qwen3_moe").generate([PROMPTS[2]], GREEDY)
    assert {"attention_v3", "decode_d3", "linear_l5", "linear_l5_experts"} <= set(p.kernels)
    assert not PLAIN & set(p.kernels)
    with profile() as p:
        load(dtype="float32").generate([PROMPTS[2]], GREEDY)
    assert {"attention_v2", "decode_d1", "linear_l2", "linear_l3"} <= set(p.kernels)
    assert not any(name.endswith(("l5", "v3", "d3")) for name in p.kernels)


def test_control_the_pairs_differ(load, monkeypatch):
    """Another pair of rungs has other bits, and another name. To mix the pairs is noticed."""
    ours, prompt = load(), PROMPTS[2]
    (tokens, decoded), ops = answers(ours, [prompt])[0], SimtOps()

    def mixed(q: Tensor, *others: Any) -> Tensor:
        return ops.paged_attention(q, *others, rung="v2" if q.shape[0] > 1 else None)

    again = prefilled(load(parts={"attention": mixed}), prompt + tokens[:-1])[len(prompt) - 1 :]
    assert not torch.equal(decoded, again)
    torch.testing.assert_close(decoded, again, rtol=0.1, atol=0.1)
    monkeypatch.setenv("MINILLM_TENSOR_CORES", "0")
    off = load()
    with profile() as p:
        _, logprobs = answers(off, [prompt])[0]
    assert not torch.equal(decoded, logprobs)
    assert sanitizing() or not any(name.endswith(("l5", "v3", "d3")) for name in p.kernels)
    names = {llm.generate([[1]], GREEDY)[0].envelope["kernels"].split("/")[1] for llm in (ours, off)}
    assert names == {"v3+d3+l5", "v2+d1+l2"}
