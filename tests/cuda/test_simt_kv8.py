"""`LLM(kv_dtype=..., backend="simt")`: keys and values in 8 bits on the CUDA kernels, in an engine.

The control, one scale for a block, fails where the same bits are asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import drafting
import pytest
import tiny
import torch
from company import PROMPTS, SHAPE, answers, prefilled, same
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.config import KV_DTYPES, EngineConfig
from minillm.memory.kv_cache import KVCache
from minillm.model.loader import load_model
from minillm.ops import kv_codes
from minillm.ops.contract import AttentionMetadata, LayerCache
from minillm.ops.reference import apply_rope
from minillm.ops.simt import SimtOps, flavour, profile, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing
from minillm.verify.trace import trace_tokens
from minillm.worker.runner import ModelRunner
from minillm.worker.step import SequenceRows

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

WORLDS: dict[str, dict[str, Any]] = {
    "in chunks of 7": {"prefill_chunk": 7},
    "three at a time, ragged": {"max_num_seqs": 3, "max_num_batched_tokens": 61},
    "in blocks of 5": {"block_size": 5},
    "drafts": {"draft_model": "ngram", "num_draft_tokens": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.config(**SHAPE)
    return tiny.make_folder(
        tmp_path_factory.mktemp("simt") / "llama", config, tensors=tiny.weights(config, scale=0.15)
    )


def load(folder: Path, kind: str | None, **options: Any) -> LLM:
    """An engine whose cache is spoilt: each code -1 and each scale NaN."""
    llm = tiny.load(folder, **({"backend": "simt", "kv_memory": "4MiB", "kv_dtype": kind} | options))
    for tensor in drafting.all_caches(llm):
        tensor.view(torch.int8).fill_(-1)
    return llm


@pytest.mark.parametrize(
    ("kind", "dtype"), [("int8", "bfloat16"), ("int8", "float32"), ("fp8", "bfloat16"), ("fp8", "float16")]
)
def test_alone_or_in_company(folder: Path, kind: str, dtype: str) -> None:
    llm = load(folder, kind, dtype=dtype)
    expected = [answers(llm, [prompt])[0] for prompt in PROMPTS]
    assert same(expected, answers(llm, PROMPTS)), "with every prompt's prefix in the cache"
    assert llm.engine.stats()["num_blocks"] == (4 << 20) // (16 * 2 * 2 * 36), "tokens, layers, K and V"
    for name, options in WORLDS.items():
        assert same(expected, answers(load(folder, kind, dtype=dtype, **options), PROMPTS)), name
    for prompt, (tokens, decoded) in zip(PROMPTS, expected, strict=True):
        again = prefilled(llm, prompt + tokens[:-1])
        assert torch.equal(decoded, again[len(prompt) - 1 :]), "decoded or prefilled"


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_drafts_and_forks_change_no_bit(folder: Path, kind: str) -> None:
    params = [
        SamplingParams(max_tokens=6, temperature=0.8 * (i % 2), seed=i, ignore_eos=True, logprobs=5)
        for i in range(len(PROMPTS))
    ]
    known = load(folder, kind).generate(PROMPTS, params)
    options: dict[str, Any] = {"num_draft_tokens": 3, "adaptive_draft": False}
    scripted = load(folder, kind, parts=drafting.scripted(known, 0.7), **options)
    assert drafting.differing(scripted.generate(PROMPTS, params), known) == []
    twin = load(folder, kind, draft_model=folder, draft_tree=(2, 1), **options)
    assert drafting.differing(twin.generate(PROMPTS, params), known) == []
    forked = SamplingParams(max_tokens=5, seed=3, n=3, ignore_eos=True, logprobs=5)
    warm, cold = (
        load(folder, kind, prefix_caching=caching).generate([PROMPTS[3]], forked)[0].outputs
        for caching in (True, False)
    )
    assert [c.token_ids for c in warm] == [c.token_ids for c in cold]
    assert [c.logprobs for c in warm] == [c.logprobs for c in cold]


@pytest.mark.parametrize(("kind", "other"), [("int8", "native"), ("fp8", "reference")])
def test_tokens_and_logits_are_those_of_the_cpu(folder: Path, kind: str, other: str) -> None:
    """The greedy tokens, and the logits but for codes that rounded the other way."""
    simulated, on_cpu = load(folder, kind), load(folder, kind, backend=other)
    found, exact = (answers(llm, PROMPTS) for llm in (simulated, on_cpu))
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in exact]
    logits, expected = simulated.logits(PROMPTS[3]), on_cpu.logits(PROMPTS[3])
    size = float(expected.std())
    assert float((logits - expected).abs().max()) < 0.02 * size
    plain = load(folder, None).logits(PROMPTS[3])
    assert float((plain - logits).abs().max()) > 1e-3 * size, "control: rounding keys and values shows"


@pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
def test_a_generation_is_free_of_races_and_runs_the_kernels_of_codes(folder: Path) -> None:
    llm = load(folder, "int8", dtype="bfloat16")
    with flavour("check"), schedule(reverse=True), profile() as p:
        found = answers(llm, [PROMPTS[1]])
    assert same(found, answers(load(folder, "int8", dtype="bfloat16"), [PROMPTS[1]]))
    steps, layers = 4, 2
    assert p["attention_q1"].launches == p["rope_and_codes"].launches == layers * steps
    assert not {"rope_and_cache", "attention_v2", "attention_v3", "decode_d1", "decode_d3"} & set(p.kernels)


def test_a_replaced_rope_writes_the_layout_of_the_kernels(folder: Path) -> None:
    """The reference's rope and cache writes on CUDA's attention, op by op."""
    found = load(folder, "int8", parts={"rope": apply_rope}).logits(PROMPTS[3])
    assert torch.allclose(found, load(folder, "int8").logits(PROMPTS[3]), atol=0.02 * float(found.std()))


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_a_trace_sees_the_codes_of_each_token(folder: Path, kind: str) -> None:
    """The digests of what each op gave and wrote are the same for a prompt in one pass and in chunks."""
    model = load_model(folder, EngineConfig(device="cpu", kv_dtype=kind), SimtOps())
    whole, chunks = (trace_tokens(model, PROMPTS[2], len(PROMPTS[2]), chunk) for chunk in (64, 5))
    assert whole.digests == chunks.digests and whole.logits == chunks.logits


class OneScaleForABlock(SimtOps):
    """What int8 would be with one running scale for each block and head: earlier codes are rounded again."""

    def can_bind(self, weights: Any) -> bool:
        return False

    def rope_and_cache(
        self, q: Tensor, k: Tensor, v: Tensor, rope: Any, cache: LayerCache, meta: AttentionMetadata
    ) -> Tensor:
        turned = super().rope_and_cache(q, k, v, rope, cache, meta)
        for rows in (self.view_keys(cache.k), kv_codes.rows(cache.v)):
            for first in range(0, int(meta.kv_len[0]), 16):
                own = meta.block_table[0, first // 16], slice(0, min(16, int(meta.kv_len[0]) - first))
                scale = rows.scales[own].amax(dim=0)
                numbers = rows.codes[own].float() * rows.scales[own].unsqueeze(-1)
                rows.codes[own] = (numbers / scale.unsqueeze(-1)).round().to(torch.int8)
                rows.scales[own] = scale
        return turned


def hidden(folder: Path, ops: SimtOps, chunk: int) -> Tensor:
    """Hidden states [num_tokens, hidden] of a prompt whose tokens enter in chunks."""
    model, ids = load_model(folder, EngineConfig(device="cpu", kv_dtype="int8"), ops), PROMPTS[3]
    runner = ModelRunner(model.decoder, KVCache.allocate(model.config, 5, 16, model.dtype, model.device), 16)
    starts = range(0, len(ids), chunk)
    return torch.cat([runner.forward([SequenceRows(ids[at : at + chunk], at, range(5))]) for at in starts])


def test_control_one_scale_for_a_block_fails(folder: Path) -> None:
    """The same comparison of chunks fails as soon as tokens share a scale."""
    assert torch.equal(hidden(folder, SimtOps(), 70), hidden(folder, SimtOps(), 7))
    whole, chunks = (hidden(folder, OneScaleForABlock(), chunk) for chunk in (70, 7))
    assert (whole != chunks).any(dim=-1).float().mean() > 0.5, "for most tokens"
