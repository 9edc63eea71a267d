"""`kv_dtype`: the contracts hold inside it, the memory holds more, and what cannot have it refuses.

Log-probabilities of the whole vocabulary are compared by `torch.equal`. Before a run every code is -1 and
every scale NaN, so a slot that is read before it is written shows.
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cases import make_meta
from coded_caches import empty
from company import DTYPES, WIDE, bits, decoded_and_prefilled
from drafting import all_caches, make_pair, scripted
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.config import EngineConfig
from minillm.errors import BackendError, UnsupportedModel, UsageError
from minillm.memory.encoding import digest
from minillm.memory.envelope import KVEnvelope
from minillm.memory.kv_cache import KVCache
from minillm.model.loader import load_model
from minillm.ops import kv_codes
from minillm.ops.contract import AttentionMetadata, LayerCache
from minillm.ops.cpu import CpuOps
from minillm.ops.reference import apply_rope, read_cache, write_cache
from minillm.worker.runner import ModelRunner
from minillm.worker.step import SequenceRows

LENGTHS = (1, 5, 16, 63, 65, 130, 37, 200)
PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(length)] for i, length in enumerate(LENGTHS)]
PARAMS = [
    SamplingParams(max_tokens=6, temperature=0.8 * (i % 2), seed=i, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
    for i in range(len(PROMPTS))
]
BLOCK_BYTES = 16 * 2 * 2 * 2 * (32 + 4)  # tokens, K and V, layers, kv heads, codes and a scale
CONFIG = tiny.config(**WIDE, max_position_embeddings=512)
Answers = list[tuple[list[int], Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kv8") / "model"
    return tiny.make_folder(path, CONFIG, tensors=tiny.weights(CONFIG, scale=0.1))


def load(folder: Path, **options: Any) -> LLM:
    defaults = {"backend": "native", "kv_dtype": "int8", "kv_memory": "8MiB"}
    llm = tiny.load(folder, **(defaults | options))
    spoil(llm)
    return llm


def spoil(llm: LLM) -> None:
    for tensor in all_caches(llm):
        tensor.view(torch.int8).fill_(-1)  # of numbers: NaN


def answers(llm: LLM, order: list[int] | None = None) -> Answers:
    """The answers to all prompts, run in this order and returned in theirs."""
    order = order or list(range(len(PROMPTS)))
    outputs = llm.generate([PROMPTS[i] for i in order], [PARAMS[i] for i in order])
    found = {i: bits(output) for i, output in zip(order, outputs, strict=True)}
    return [found[i] for i in range(len(PROMPTS))]


def alone(llm: LLM) -> Answers:
    return [bits(llm.generate([p], [q])[0]) for p, q in zip(PROMPTS, PARAMS, strict=True)]


def differing(a: Answers, b: Answers) -> list[int]:
    pairs = zip(a, b, strict=True)
    return [i for i, (x, y) in enumerate(pairs) if x[0] != y[0] or not torch.equal(x[1], y[1])]


# ---- the same bits (contracts C2, C5, C7) -----------------------------------------------------------

COMPANY: dict[str, dict[str, Any]] = {
    "in one batch": {},
    "in chunks of 7": {"prefill_chunk": 7},
    "in chunks of 1": {"prefill_chunk": 1},
    "ragged": {"prefill_chunk": 50, "max_num_batched_tokens": 61},
    "in blocks of 5": {"block_size": 5},
    "in a small pool": {"kv_memory": 18 * BLOCK_BYTES},
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_alone_or_in_company(folder: Path, cpu_isa: str, dtype: str) -> None:
    expected = alone(load(folder, dtype=dtype))
    for name, options in COMPANY.items():
        llm = load(folder, dtype=dtype, **options)
        preempted = list[str]()
        llm.engine.events.listeners.append(lambda event, seen=preempted: seen.append(event.kind))
        if "kv_memory" in options:
            llm.engine.scheduler.headroom_tokens = 0
        assert differing(expected, answers(llm, list(range(len(PROMPTS)))[::-1])) == [], name
        assert ("preempt" in preempted) == ("kv_memory" in options), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_after_a_prefix_hit(folder: Path, dtype: str) -> None:
    llm = load(folder, dtype=dtype)
    cold = answers(llm)
    assert differing(cold, answers(llm)) == []
    assert llm.generate([PROMPTS[7]], PARAMS[7])[0].metrics.cached_tokens > 100
    spoil(llm)
    assert differing(cold, answers(llm)) != [], "control: the hits were read"


def test_forks(folder: Path) -> None:
    """Three samples share the blocks of a prompt, and its last block is copied: the same cold and warm."""
    llm = load(folder)
    params = SamplingParams(max_tokens=20, seed=3, n=3, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
    warm = [bits(c) for c in llm.generate([PROMPTS[6]], params)[0].outputs]
    cold = [bits(c) for c in load(folder, prefix_caching=False).generate([PROMPTS[6]], params)[0].outputs]
    assert differing(warm, cold) == [] and len({tuple(ids) for ids, _ in warm}) == 3


@pytest.mark.parametrize("drafts", ["often right", "model", "tree"])
def test_speculation_changes_no_bit(tmp_path: Path, drafts: str) -> None:
    target, draft = make_pair(tmp_path)
    plain = load(target).generate(PROMPTS, PARAMS)
    expected = [bits(output) for output in plain]
    options: dict[str, Any] = {"draft_model": str(draft), "num_draft_tokens": 4}
    if drafts == "often right":
        options = {"parts": scripted(plain, 0.7)}
    elif drafts == "tree":
        options["draft_tree"] = (3, 1)
    llm = load(target, adaptive_draft=False, **options)
    assert all(map(kv_codes.has_codes, all_caches(llm)))
    outputs = llm.generate(PROMPTS, PARAMS)
    assert differing(expected, [bits(output) for output in outputs]) == []
    assert sum(output.metrics.drafted for output in outputs) > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoded_or_prefilled(folder: Path, cpu_isa: str, dtype: str) -> None:
    assert torch.equal(*decoded_and_prefilled(partial(load, folder, dtype=dtype), PROMPTS[5]))


class OneByOne:
    """Native ops without the fused call: the decoder loops over its layers."""

    name = "native"

    def __init__(self) -> None:
        self.inner = CpuOps()

    def __getattr__(self, op: str) -> Any:
        return getattr(self.inner, op)


def test_layers_in_one_call_or_op_by_op(folder: Path) -> None:
    results = []
    for ops in (CpuOps(), OneByOne()):
        model = load_model(folder, EngineConfig(device="cpu", kv_dtype="int8"), ops)
        cache = KVCache.allocate(model.config, 20, 16, model.dtype, model.device)
        assert cache.nbytes == 20 * BLOCK_BYTES
        runner = ModelRunner(model.decoder, cache, 16)
        first = runner.forward(
            [SequenceRows(PROMPTS[5], 0, range(9)), SequenceRows(PROMPTS[3], 0, range(9, 13))]
        )
        second = runner.forward([SequenceRows([5], 130, range(9)), SequenceRows([6, 7], 63, range(9, 14))])
        results.append(torch.cat([first, second]))
    assert torch.equal(*results)


class OneScaleForABlock(OneByOne):
    """What int8 would be with one running scale for each block and head: earlier codes are rounded again."""

    def rope_and_cache(
        self, q: Tensor, k: Tensor, v: Tensor, rope: Any, cache: LayerCache, meta: AttentionMetadata
    ) -> Tensor:
        turned = self.inner.rope_and_cache(q, k, v, rope, cache, meta)
        for rows in (kv_codes.columns(cache.k), kv_codes.rows(cache.v)):
            for table, length in zip(meta.block_table.tolist(), meta.kv_len.tolist(), strict=True):
                for first in range(0, length, 16):
                    own = table[first // 16], slice(0, min(16, length - first))
                    scale = rows.scales[own].amax(dim=0)
                    numbers = rows.codes[own].float() * rows.scales[own].unsqueeze(-1)
                    rows.codes[own] = (numbers / scale.unsqueeze(-1)).round().to(torch.int8)
                    rows.scales[own] = scale
        return turned


def hidden(folder: Path, ops: Any, chunk: int) -> Tensor:
    """Hidden states [num_tokens, hidden] of the longest prompt, whose tokens enter in chunks."""
    model, ids = load_model(folder, EngineConfig(device="cpu", kv_dtype="int8"), ops), PROMPTS[7]
    runner = ModelRunner(model.decoder, KVCache.allocate(model.config, 13, 16, model.dtype, model.device), 16)
    starts = range(0, len(ids), chunk)
    return torch.cat([runner.forward([SequenceRows(ids[at : at + chunk], at, range(13))]) for at in starts])


def test_control_one_scale_for_a_block_fails(folder: Path) -> None:
    """The same comparison of chunks fails as soon as tokens share a scale."""
    assert torch.equal(hidden(folder, OneByOne(), 200), hidden(folder, OneByOne(), 7))
    whole, chunks = (hidden(folder, OneScaleForABlock(), chunk) for chunk in (200, 7))
    assert not torch.equal(whole, chunks)
    assert (whole != chunks).any(dim=-1).float().mean() > 0.5, "for most tokens"


# ---- the same numbers as the reference, and nearly those of plain keys and values ---------------------


def test_against_the_reference_and_against_plain_keys(folder: Path) -> None:
    ids = PROMPTS[7]
    native, reference = (load(folder, backend=name).logits(ids) for name in ("native", "reference"))
    plain = load(folder, kv_dtype=None).logits(ids)
    size = float(plain.std())
    assert float((native - reference).abs().max()) < 0.02 * size, "a code may round the other way"
    fp8 = load(folder, backend="reference", kv_dtype="fp8").logits(ids)
    roundings = [float((found - plain).pow(2).mean().sqrt()) for found in (native, fp8)]
    assert 0 < roundings[0] < roundings[1] < 0.1 * size, "int8 has finer steps than three bits of fraction"


# ---- memory -------------------------------------------------------------------------------------------


def test_the_same_memory_holds_more(tmp_path: Path) -> None:
    """Heads of 64 in bfloat16: 128 bytes against 64 codes and a scale."""
    config = tiny.config(hidden_size=128, num_attention_heads=2, num_key_value_heads=2)
    folder = tiny.make_folder(tmp_path / "m", config)
    kinds: dict[str | None, str] = {None: "native", "int8": "native", "fp8": "reference"}
    counts = [
        load(folder, dtype="bfloat16", kv_dtype=kind, backend=name).engine.stats()["num_blocks"]
        for kind, name in kinds.items()
    ]
    assert counts[1] / counts[0] >= 1.85 and counts[1] == counts[2]
    llm = load(folder, dtype="bfloat16")
    allocated = sum(tensor.nbytes for tensor in all_caches(llm))
    assert allocated == counts[1] * 16 * llm.engine.model.config.kv_bytes_per_token(2) <= 8 << 20


def test_inspect_counts_codes_and_scales(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from minillm.cli.main import main

    found = []
    for option in ([], ["--kv-dtype", "int8"], ["--kv-dtype", "fp8"]):
        assert main(["inspect", str(folder), "--dtype", "bfloat16", "--json", *option]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[1]["kv_bytes_per_token"] == BLOCK_BYTES // 16 < found[0]["kv_bytes_per_token"]
    assert found[1]["tokens_that_fit"] > found[0]["tokens_that_fit"]
    assert all(found[1][name] == found[2][name] for name in ("kv_bytes_per_token", "tokens_that_fit"))


# ---- the envelope -------------------------------------------------------------------------------------


def test_the_envelope_names_it(folder: Path) -> None:
    plain, int8 = (load(folder, kv_dtype=kind).engine.envelope for kind in (None, "int8"))
    differ = [name for name, part in plain["components"].items() if int8["components"][name] != part]
    assert differ == ["kv_dtype"] and plain["kv"] != int8["kv"]
    assert int8["kv_dtype"] == "int8" and "kv_dtype" not in plain
    two = [load(folder, backend="reference", kv_dtype=kind).engine.envelope for kind in ("int8", "fp8")]
    differ = [name for name, part in two[0]["components"].items() if two[1]["components"][name] != part]
    assert differ == ["kv_dtype"] and two[0]["kv"] != two[1]["kv"] and two[1]["kv_dtype"] == "fp8"


def test_plain_engines_keep_their_digest(folder: Path) -> None:
    """The digest is that of the components from before there was a `kv_dtype`."""
    for kind in (None, "int8"):
        envelope = load(folder, kv_dtype=kind).engine.envelope
        before = {f.name: envelope["components"][f.name] for f in fields(KVEnvelope) if f.name != "kv_dtype"}
        assert (envelope["kv"] == digest(["kv envelope", 2, before])) == (kind is None)


# ---- refusals -----------------------------------------------------------------------------------------


def test_unknown_names_and_odd_heads_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="kv_dtype='int4' is not known"):
        load(folder, kv_dtype="int4")
    config = tiny.config(hidden_size=24, num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(UnsupportedModel, match="head_dim 6 is no multiple of 4"):
        load(tiny.make_folder(tmp_path / "m", config))


@pytest.mark.parametrize("name", ["attention", "write_cache", "read_cache"])
def test_parts_that_get_plain_rows_are_refused(folder: Path, name: str) -> None:
    own = {
        "attention": lambda q, k, v, meta, scale, window: q,
        "write_cache": write_cache,
        "read_cache": read_cache,
    }
    for backend in ("native", "reference"):
        with pytest.raises(UsageError, match=f"part '{name}' cannot be replaced with a KV cache in int8"):
            load(folder, backend=backend, parts={name: own[name]})


def test_a_replaced_rope_is_served(folder: Path) -> None:
    """Other parts never see the cache. The reference's own rope on native kernels gives nearly the same."""
    found = load(folder, parts={"rope": apply_rope}).logits(PROMPTS[5])
    assert torch.allclose(found, load(folder).logits(PROMPTS[5]), atol=0.05 * float(found.std()))


class WithoutKernels(OneByOne):
    name, kv_dtypes = "native", ()


def test_backends_without_kernels_refuse(folder: Path) -> None:
    ops = WithoutKernels()
    with pytest.raises(BackendError, match="backend native has no kernels for a KV cache in int8"):
        load_model(folder, EngineConfig(device="cpu", kv_dtype="int8"), ops)
    assert load_model(folder, EngineConfig(device="cpu"), ops).config.kv_dtype is None


def test_native_kernels_on_a_cpu_refuse_fp8(folder: Path) -> None:
    with pytest.raises(BackendError, match="backend native has no kernels for a KV cache in fp8") as refused:
        load(folder, kv_dtype="fp8")
    assert "use int8 or leave kv_dtype out" in str(refused.value)
    fp8 = empty((4, 16, 1, 8), "fp8")
    with pytest.raises(RuntimeError, match="no kernels for a cache of fp8"):
        CpuOps().paged_attention(torch.ones(1, 1, 8), *fp8, make_meta([[0]], [1], [1], 16), 1.0)
