"""Contracts C2 and C7 for every family: equal bits alone, in company, chunked, cached, preempted, drafted.

Each family's tiny model has the features of real checkpoints: windows by layer, layers without rope, norms
on both sides, softcaps, sinks, experts. Log-probabilities of the whole vocabulary are compared by
`torch.equal`. The controls are the reference backend, which differs, and a router that decides ties by the
position in the batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.model.families import FAMILIES
from minillm.ops.contract import Routing
from minillm.ops.cpu import CpuOps
from minillm.ops.swapped import SwappedOps

LENGTHS = [1, 5, 30, 76, 126, 64, 65, 12]  # some answers need one block more than the prompt
PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(length)] for i, length in enumerate(LENGTHS)]
PARAMS = [
    SamplingParams(max_tokens=6, temperature=1.2 * (i % 2), seed=i, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
    for i in range(len(PROMPTS))
]
TIGHT_BLOCKS = 13  # the longest prompt fits, and an answer that grows makes another wait
WITH_EXPERTS = ("qwen3_moe", "olmoe", "mixtral", "gpt_oss")
Answer = tuple[list[int], Tensor]

WORLDS: dict[str, dict[str, Any]] = {
    "in one batch": {},
    "in chunks of 7": {"prefill_chunk": 7},
    "ragged": {"prefill_chunk": 50, "max_num_batched_tokens": 61},
    "three at a time": {"max_num_seqs": 3},
    "in blocks of 5": {"block_size": 5},
    "drafted by n-grams": {"draft_model": "ngram", "num_draft_tokens": 3},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("families")
    return {family: families.make_folder(base, family) for family in FAMILIES}


def load(folder: Path, backend: str = "native", dtype: str = "float32", **options: Any) -> LLM:
    return tiny.load(folder, **({"backend": backend, "dtype": dtype, "kv_memory": "64MiB"} | options))


def answers(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[Answer]:
    found = []
    for output in llm.generate(prompts, params):
        assert output.error is None and output.logprobs is not None
        rows = [[value for _, value in sorted(row.items())] for row in output.logprobs]
        found.append((output.token_ids, torch.tensor(rows)))
    return found


def differing(a: list[Answer], b: list[Answer]) -> list[int]:
    """The prompts whose tokens or log-probabilities differ in any bit."""
    pairs = enumerate(zip(a, b, strict=True))
    return [i for i, (x, y) in pairs if x[0] != y[0] or not torch.equal(x[1], y[1])]


@cache
def alone(folder: Path, backend: str, dtype: str) -> list[Answer]:
    llm = load(folder, backend, dtype, prefix_caching=False)
    return [answers(llm, [p], [s])[0] for p, s in zip(PROMPTS, PARAMS, strict=True)]


def test_no_family_is_missing() -> None:
    assert set(families.OWN) == set(FAMILIES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_alone_or_in_company(folders: dict[str, Path], family: str, dtype: str) -> None:
    expected = alone(folders[family], "native", dtype)
    for name, options in WORLDS.items():
        found = answers(load(folders[family], dtype=dtype, **options), PROMPTS, PARAMS)
        assert differing(expected, found) == [], name


@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_prefix_hit_and_after_preemption(folders: dict[str, Path], family: str) -> None:
    expected = alone(folders[family], "native", "float32")
    warm = load(folders[family])
    answers(warm, PROMPTS, PARAMS)
    assert differing(expected, answers(warm, PROMPTS, PARAMS)) == []
    assert warm.generate([PROMPTS[4]], PARAMS[4:5])[0].metrics.cached_tokens > 0

    model = warm.engine.model
    tight = load(folders[family], kv_memory=TIGHT_BLOCKS * 16 * model.config.kv_bytes_per_token(4))
    tight.engine.scheduler.headroom_tokens = 0
    preempted = list[str]()
    tight.engine.events.listeners.append(lambda event: preempted.append(event.kind))
    assert differing(expected, answers(tight, PROMPTS, PARAMS)) == []
    assert "preempt" in preempted


@pytest.mark.parametrize("family", ["olmo3", "gemma3_text", "gpt2", "gpt_oss"])
def test_a_draft_of_another_family_changes_only_time(folders: dict[str, Path], family: str) -> None:
    """The draft model shares the vocabulary and nothing else."""
    expected = alone(folders[family], "native", "float32")
    for draft in ("mixtral", family):
        llm = load(folders[family], draft_model=str(folders[draft]), num_draft_tokens=3)
        found = answers(llm, PROMPTS, PARAMS)
        assert differing(expected, found) == [], draft


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_and_instruction_sets(folders: dict[str, Path], cpu_isa: str, family: str) -> None:
    """On each instruction set, one thread gives the bits of two."""
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(answers(load(folders[family]), PROMPTS, PARAMS))
    torch.set_num_threads(before)
    assert differing(*found) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fused_pass_has_the_bits_of_single_ops(folders: dict[str, Path], family: str) -> None:
    """An object that wraps the ops is no `FusedOps`, so the decoder calls them one by one."""
    expected = alone(folders[family], "native", "float32")
    llm = load(folders[family])
    runner = llm.engine.worker.runner
    assert runner.is_fused
    ids = PROMPTS[4]
    fused = llm.logits(ids)
    single = LLM(
        folders[family], device="cpu", dtype="float32", backend="native", kv_memory="64MiB",
        parts={"rope": _own_rope} if families.FAMILIES[family].rope else {"linear": _own_linear(llm)},
    )  # fmt: skip
    assert not single.engine.worker.runner.is_fused
    assert expected and torch.equal(fused, single.logits(ids))


def _own_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rope`, in the order of the native kernel."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def _own_linear(llm: LLM) -> Any:
    return CpuOps().linear


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt2", "mixtral", "gpt_oss"])
def test_in_the_simulator(folders: dict[str, Path], family: str) -> None:
    prompts, params = PROMPTS[:3], [SamplingParams(2, 0.0, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)] * 3
    llm = load(folders[family], "simt")
    one_by_one = [answers(llm, [p], [s])[0] for p, s in zip(prompts, params, strict=True)]
    chunked = load(folders[family], "simt", prefill_chunk=20, prefix_caching=False)
    assert differing(one_by_one, answers(chunked, prompts, params)) == []


# ---- the controls ---------------------------------------------------------------------------------


def test_the_reference_backend_differs(folders: dict[str, Path]) -> None:
    llm = load(folders["gemma3_text"], "reference")
    assert differing(alone(folders["gemma3_text"], "reference", "float32"), answers(llm, PROMPTS, PARAMS))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral whose experts 1 and 3 always tie, and whose experts differ."""
    cfg = families.config("mixtral")
    tensors = families.weights(cfg, seed=3)
    for name in [name for name in tensors if name.endswith("block_sparse_moe.gate.weight")]:
        tensors[name][3] = tensors[name][1]
    return tiny.make_folder(tmp_path_factory.mktemp("tied") / "model", cfg, tensors=tensors)


class ByPosition(SwappedOps):
    """A router that decides ties by the token's position in the batch."""

    def route(self, logits: Tensor, per_token: int, renormalize: bool) -> Routing:
        rows = torch.arange(len(logits)).unsqueeze(1)
        numbers = torch.arange(logits.shape[1]).unsqueeze(0)
        first = torch.where(rows % 2 == 0, numbers, -numbers) * 1e-7
        chosen = (logits.float() + first).topk(per_token).indices.sort().values
        return Routing(chosen, logits.float().gather(1, chosen).softmax(-1))


def test_ties_in_the_router(tied: Path) -> None:
    expected = alone(tied, "native", "float32")
    for name, options in WORLDS.items():
        assert differing(expected, answers(load(tied, **options), PROMPTS, PARAMS)) == [], name


@pytest.fixture
def with_ops(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[LLM, SwappedOps]]:
    """Loads a model over ops of another class. These are no `FusedOps`: the engine calls them one by one."""

    def load_with(ops: type[SwappedOps], folder: Path, **options: Any) -> tuple[LLM, SwappedOps]:
        made = ops(CpuOps())
        monkeypatch.setattr("minillm.model.loader.make_ops", lambda *_: made)
        llm = load(folder, **options)
        monkeypatch.undo()
        return llm, made

    return load_with


def test_a_router_that_breaks_ties_by_position_fails(tied: Path, with_ops: Any) -> None:
    """The control: with it the same comparison finds differences."""
    single, _ = with_ops(ByPosition, tied, prefix_caching=False)
    batched, _ = with_ops(ByPosition, tied)
    one_by_one = [answers(single, [p], [s])[0] for p, s in zip(PROMPTS, PARAMS, strict=True)]
    assert differing(one_by_one, answers(batched, PROMPTS, PARAMS))


class Recording(SwappedOps):
    """Remembers what the router chose, layer after layer."""

    chosen: list[set[int]]

    def route(self, logits: Tensor, per_token: int, renormalize: bool) -> Routing:
        routing: Routing = self._inner.route(logits, per_token, renormalize)
        self.chosen = [*getattr(self, "chosen", []), set(routing.chosen.flatten().tolist())]
        return routing


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_experts_that_no_token_uses_are_not_read(
    folders: dict[str, Path], tmp_path: Path, with_ops: Any, family: str
) -> None:
    """NaN in them changes nothing; the control: NaN in a used one ends the request."""
    cfg = families.config(family)
    tensors = families.weights(cfg)
    prompt, params = PROMPTS[0], SamplingParams(1, 0.0, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
    observed, recorded = with_ops(Recording, folders[family])
    answers(observed, [prompt], [params])
    expected = answers(load(folders[family]), [prompt], [params])

    specs = [layer.experts for layer in observed.engine.model.config.layers]
    layers = [i for i, spec in enumerate(specs) if spec is not None]
    used = dict(zip(layers, recorded.chosen, strict=True))
    unused = {i: set(range(specs[i].count)) - used[i] for i in layers}
    assert all(unused.values())
    poisoned = load(tiny.make_folder(tmp_path / "unused", cfg, tensors=poison(tensors, unused)))
    assert differing(expected, answers(poisoned, [prompt], [params])) == []
    broken = load(tiny.make_folder(tmp_path / "used", cfg, tensors=poison(tensors, used)))
    assert broken.generate([prompt], [params])[0].error is not None


def poison(tensors: dict[str, Tensor], experts: dict[int, set[int]]) -> dict[str, Tensor]:
    """A copy of the checkpoint with NaN in these experts of these layers."""
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in changed.items():
        found = re.search(r"layers\.(\d+)\..*experts\.(\d+|gate_up|down)", name)
        if not found:
            continue
        for expert in experts.get(int(found[1]), ()):
            if found[2] == str(expert):
                tensor.fill_(float("nan"))
            elif not found[2].isdigit():
                tensor[expert] = float("nan")
    return changed
