"""The seams: every named part can be replaced by a reader's own, and the engine really calls it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm import SamplingParams, TenantLimits
from minillm.engine.engine import Engine
from minillm.engine.parts import Parts
from minillm.errors import PartError, UsageError
from minillm.memory.prefix_cache import PrefixCache, Scope
from minillm.ops.reference import ReferenceOps, apply_rope, read_cache, write_cache
from minillm.speculation.ngram import NgramDrafter

PROMPT = list(range(20, 37))
PARAMS = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, n=2)
OWN = {
    **{name: getattr(Parts(), name) for name in (f.name for f in fields(Parts))},
    "rope": apply_rope,
    "attention": ReferenceOps().paged_attention,
    "linear": ReferenceOps().linear,
    "write_cache": write_cache,
    "read_cache": read_cache,
    "drafter": lambda model, config: NgramDrafter(),
    "verify_draft": ReferenceOps().verify_draft,
}


@pytest.mark.parametrize("name", [f.name for f in fields(Parts)])
def test_every_part_is_called_and_can_be_the_engines_own(folder: Path, name: str) -> None:
    """If the engine's own part is wrapped, the tokens are the same and the wrapper has been called."""
    calls = []

    def mine(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return OWN[name](*args, **options)

    options: dict[str, Any] = {}
    if name == "verify_draft":
        options = {"draft_model": folder, "draft_verification": "rejection", "adaptive_draft": False}
    if name in ("shares", "quota"):
        options = {"tenant_limits": {None: TenantLimits(max_blocks=20)}}
    expected = tiny.load(folder, **options).generate([PROMPT, [5]], PARAMS)
    found = tiny.load(folder, parts={name: mine}, **options).generate([PROMPT, [5]], PARAMS)
    assert calls, f"{name} was never called"
    for a, b in zip(found, expected, strict=True):
        assert [(c.token_ids, c.text) for c in a.outputs] == [(c.token_ids, c.text) for c in b.outputs]


class Loud:
    """A reader's own detokenizer."""

    def __init__(self, tokenizer: Any, stops: Any, prompt_ids: Any) -> None:
        self.stopped = False

    def push(self, token_id: int) -> str:
        return f"[{token_id}]"

    def finish(self) -> str:
        return "!"


def interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sampler", lambda logits, batch: torch.full((len(logits),), 42)),
        ("detokenizer", Loud),
        ("rope", interleaved),
        ("attention", lambda q, *rest: torch.zeros_like(q)),
        ("linear", lambda x, weight, bias=None: x @ weight.T * 1.5),
        ("write_cache", lambda cache, slots, rows: write_cache(cache, slots, -2 * rows)),
        ("read_cache", lambda cache, table, count: read_cache(cache, table, count).flip(0)),
        ("prefill_loop", lambda runner, chunks: OWN["prefill_loop"](runner, chunks).flip(-1)),
        ("decode_loop", lambda runner, requests: OWN["decode_loop"](runner, requests).flip(-1)),
    ],
)
def test_a_different_part_makes_a_difference(folder: Path, name: str, part: Any) -> None:
    """The control for the test above, which would also pass if the wrapper's result were ignored.

    (The control for `slot_mapping` is in test_engine.py: a wrong slot is visible only in an empty cache.)
    """
    expected = tiny.load(folder).generate(PROMPT, PARAMS)[0]
    found = tiny.load(folder, parts={name: part}).generate(PROMPT, PARAMS)[0]
    assert (found.token_ids, found.text) != (expected.token_ids, expected.text)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    "name", ["rope", "attention", "linear", "write_cache", "read_cache", "sampler", "decode_loop"]
)
def test_parts_work_from_the_engine_as_from_the_llm(folder: Path, name: str, backend: str) -> None:
    """An engine over a loaded model takes parts, even with packed matrices; the model does not change."""
    calls = []

    def mine(*args: Any) -> Any:
        calls.append(args)
        return OWN[name](*args)

    llm = tiny.load(folder, backend=backend)
    expected = llm.generate(PROMPT, PARAMS)[0]
    engine = Engine(llm.engine.model, llm.config, parts={name: mine})
    request_id = engine.add_request(PROMPT, PARAMS)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    assert calls and outputs[request_id].token_ids == expected.token_ids
    calls.clear()
    assert llm.generate(PROMPT, PARAMS)[0].token_ids == expected.token_ids and not calls


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("sampler", lambda logits: logits.argmax(-1), "cannot be called with its 2 arguments"),
        ("decode_loop", lambda: None, "it gets .runner, rows."),
        ("scheduler", lambda config, memory, events: object(), "has no add, fork, remove"),
        ("block_pool", lambda num_blocks, block_size: object(), "has no num_blocks"),
        ("prefix_cache", lambda pool: object(), "has no digest"),
        ("shares", lambda pool, common: object(), "has no add, room"),
        ("quota", lambda limits, block_size: [], "has no add, released"),
        ("drafter", lambda model, config: object(), "has no propose, settle"),
    ],
)
def test_parts_that_cannot_be_used_are_refused_when_the_engine_is_built(
    folder: Path, name: str, part: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        tiny.load(folder, parts={name: part}, tenant_limits={None: TenantLimits(max_blocks=20)})


def test_a_scope_of_everybody_shares_blocks_across_tenants(folder: Path) -> None:
    """The control of the part `scope`: the engine really uses what it returns."""

    def cached(**options: Any) -> list[int]:
        llm = tiny.load(folder, **options)
        return [llm.generate(PROMPT, PARAMS, tenant=t)[0].metrics.cached_tokens for t in ("a", "b")]

    assert cached() == [0, 0]
    shared = {"scope": lambda envelope, tenant, is_long, after: Scope(envelope)}
    assert cached(parts=shared) == [0, 16]


@pytest.mark.parametrize("wrong", [None, ("kv", "a", ""), Scope("kv", 7)], ids=["None", "tuple", "number"])  # type: ignore[arg-type]
def test_a_scope_that_is_none_is_refused(folder: Path, wrong: Any) -> None:
    llm = tiny.load(folder, parts={"scope": lambda *arguments: wrong})
    with pytest.raises(PartError, match="part 'scope' returned"):
        llm.generate(PROMPT, PARAMS)


def test_a_prefix_cache_that_finds_nothing_saves_nothing(folder: Path) -> None:
    class Blind(PrefixCache):
        def match(self, scope: Any, blocks: Any) -> list[Any]:
            return []

    def refuse(pool: Any) -> Any:
        raise AssertionError("there is no prefix cache to be made")

    def cached(**options: Any) -> list[int]:
        llm = tiny.load(folder, **options)
        return [llm.generate(PROMPT, PARAMS)[0].metrics.cached_tokens for _ in range(2)]

    assert cached() == [0, 16]
    assert cached(parts={"prefix_cache": Blind}) == [0, 0]
    assert cached(parts={"prefix_cache": refuse}, prefix_caching=False) == [0, 0]


def test_two_engines_have_parts_of_their_own(folder: Path) -> None:
    zeros = {"attention": lambda q, *rest: torch.zeros_like(q)}
    first, second = tiny.load(folder, parts=zeros), tiny.load(folder)
    assert not torch.equal(first.logits(PROMPT), second.logits(PROMPT))
    assert torch.equal(second.logits(PROMPT), tiny.load(folder).logits(PROMPT))


@pytest.mark.parametrize("name", ["Sampler", "sample", ""])
def test_unknown_parts_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="parts: sampler"):
        tiny.load(folder, parts={name: print})


def test_verify_draft_is_a_part_of_rejection_sampling(folder: Path) -> None:
    with pytest.raises(UsageError, match="draft_verification"):
        tiny.load(folder, draft_model="ngram", parts={"verify_draft": print})


def test_read_cache_beside_attention_would_never_be_used(folder: Path) -> None:
    parts = {name: OWN[name] for name in ("attention", "read_cache")}
    with pytest.raises(UsageError, match="not used beside 'attention'"):
        tiny.load(folder, parts=parts)


@pytest.mark.parametrize("parts", [[print], "sampler", 5, {1: print}, {"sampler": None}])
def test_parts_of_another_type(folder: Path, parts: Any) -> None:
    with pytest.raises(UsageError):
        tiny.load(folder, parts=parts)
