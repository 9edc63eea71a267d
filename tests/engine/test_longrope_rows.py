"""longrope: every row of a long sequence has the long keys, on every way through the engine.

Each prompt alone, in a model that has the divisors of its side for all sequences, is what all other ways are
compared with. With the native backend equal means equal bits (contracts C2 and C7).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import longrope
import pytest
import tiny
from longrope import CONTEXT, ORIGINAL, answers, differing, params, prompt

from minillm import LLM
from minillm.memory.prefix_cache import Scope
from minillm.memory.scope import block_scope
from minillm.worker import prefill as prefill_module
from minillm.worker.step import SequenceRows, StepInput, StepOutput
from minillm.worker.wire import from_bytes, to_bytes

BACKENDS = ["reference", "native"]
# Short prompts reach 32 tokens or fewer, long ones begin with 33 or more.
PROMPTS = [prompt(n, seed) for seed, n in enumerate((24, 76, 1, 47, 12, 46, 100, 14))]
PARAMS = [params(8, seed=i, temperature=0.9 * (i % 2)) for i in range(len(PROMPTS))]
IS_LONG = [len(ids) > ORIGINAL for ids in PROMPTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return longrope.make_folders(tmp_path_factory.mktemp("longrope"))


def load(folder: Path, backend: str = "reference", **options: Any) -> LLM:
    return tiny.load(folder, **({"backend": backend, "kv_memory": "4MiB"} | options))


@cache
def alone(folder: Path, backend: str) -> list[longrope.Answer]:
    llm = load(folder, backend, prefix_caching=False)
    return [answers(llm, [ids], [p])[0] for ids, p in zip(PROMPTS, PARAMS, strict=True)]


def expected(folders: dict[str, Path], backend: str) -> list[longrope.Answer]:
    """Each prompt alone, in the model that has the divisors of its side for all sequences."""
    short, long = (alone(folders[name], backend) for name in ("short_only", "long_only"))
    return [b if is_long else a for a, b, is_long in zip(short, long, IS_LONG, strict=True)]


# ---- alone or in company --------------------------------------------------------------------------

WORLDS: dict[str, dict[str, Any]] = {
    "in one batch": {},
    "in chunks of 7": {"prefill_chunk": 7},
    "three at a time": {"max_num_seqs": 3, "block_size": 5},
    "drafted by n-grams": {"draft_model": "ngram", "num_draft_tokens": 3, "adaptive_draft": False},
    "a tree": {"draft_model": "model", "draft_tree": (2, 1), "adaptive_draft": False},
    "a chain": {"draft_model": "model", "num_draft_tokens": 3, "adaptive_draft": False},
    "another side in the draft": {"draft_model": "other", "num_draft_tokens": 3, "adaptive_draft": False},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world", WORLDS)
def test_alone_or_in_company(folders: dict[str, Path], tmp_path: Path, world: str, backend: str) -> None:
    options = dict(WORLDS[world])
    if options.get("draft_model") == "model":
        options["draft_model"] = folders["model"]
    elif options.get("draft_model") == "other":
        options["draft_model"] = longrope.make_folder(
            tmp_path, longrope.SHORT, longrope.LONG, original_max_position_embeddings=48
        )
    llm = load(folders["model"], backend, **options)
    found = answers(llm, PROMPTS, PARAMS)
    assert differing(expected(folders, backend), found, backend == "native") == []
    assert tiny.all_free(llm)


@pytest.mark.parametrize("backend", BACKENDS)
def test_preempted_forked_and_cached(folders: dict[str, Path], backend: str) -> None:
    wanted = expected(folders, backend)
    model = load(folders["model"], backend).engine.model
    block = 16 * model.config.kv_bytes_per_token(4)
    tight = load(folders["model"], backend, kv_memory=8 * block)
    tight.engine.scheduler.headroom_tokens = 0
    with tight.engine.events.record() as events:
        assert differing(wanted, answers(tight, PROMPTS, PARAMS), backend == "native") == []
    order = [event.request_id for event in events if event.kind == "queue"]
    preempted = {order.index(event.request_id) for event in events if event.kind == "preempt"}
    assert {IS_LONG[i] for i in preempted} == {False, True}

    warm = load(folders["model"], backend)
    answers(warm, PROMPTS, PARAMS)
    again = warm.generate(PROMPTS, PARAMS)
    cached = [output.metrics.cached_tokens for output in again]
    assert cached == [(len(ids) - 1) // 16 * 16 for ids in PROMPTS]
    assert differing(wanted, answers(warm, PROMPTS, PARAMS), backend == "native") == []

    three = [replace(p, n=3) for p in PARAMS]
    assert differing(wanted, answers(warm, PROMPTS, three)[::3], backend == "native") == []


def test_control_rows_without_offset_are_noticed(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(token_ids: Any, start: int, block_table: list[int], rope_offset: int) -> SequenceRows:
        return SequenceRows(token_ids, start, block_table)

    monkeypatch.setattr(prefill_module, "SequenceRows", without)
    found = answers(load(folders["model"]), PROMPTS, PARAMS)
    assert differing(expected(folders, "reference"), found, exact=False) == [
        i for i, is_long in enumerate(IS_LONG) if is_long
    ]


def test_a_step_of_long_rows_travels(folders: dict[str, Path], pair_of_drafts: dict[str, Any]) -> None:
    """What the other process needs to know about a row is in the bytes."""
    for options in ({}, pair_of_drafts):
        llm = load(folders["model"], **options)
        execute = llm.engine.worker.execute
        seen = set[int]()

        def remote(step: StepInput, execute: Any = execute, seen: set[int] = seen) -> StepOutput:
            there = from_bytes(to_bytes(step))
            assert isinstance(there, StepInput)
            seen |= {row.rope_offset for rows in (there.prefill, there.decode, there.verify) for row in rows}
            back = from_bytes(to_bytes(execute(there)))
            assert isinstance(back, StepOutput)
            return back

        llm.engine.worker.execute = remote  # type: ignore[method-assign]
        found = answers(llm, PROMPTS, PARAMS)
        assert differing(expected(folders, "reference"), found, exact=False) == []
        assert seen == {0, ORIGINAL}


@pytest.fixture
def pair_of_drafts(folders: dict[str, Path]) -> dict[str, Any]:
    return {"draft_model": folders["model"], "num_draft_tokens": 3, "adaptive_draft": False}


# ---- the prefix cache -----------------------------------------------------------------------------


def shared_prefix(folder: Path, **options: Any) -> tuple[list[int], list[longrope.Answer]]:
    """A short and then a long prompt with the same first 20 tokens, and the reverse: hits and answers."""
    hits, found = [], list[longrope.Answer]()
    for order in ((0, 1), (1, 0)):
        llm, ids = load(folder, **options), prompt(40)
        both = [ids[:20], ids]
        for i in order:
            output = llm.generate(both[i], params(4))[0]
            hits.append(output.metrics.cached_tokens)
        found += [answers(llm, [both[i]], [params(4)])[0] for i in (0, 1)]
    return hits, found


def test_the_sides_share_no_block(folders: dict[str, Path]) -> None:
    hits, found = shared_prefix(folders["model"])
    assert hits == [0, 0, 0, 0]
    short, long = (shared_prefix(folders[name])[1][i] for i, name in enumerate(("short_only", "long_only")))
    assert differing([short, long, short, long], found, exact=False) == []


def test_control_one_conditioning_for_both_sides_is_noticed(
    folders: dict[str, Path],
) -> None:
    right = shared_prefix(folders["model"])[1]

    def same(envelope: str, tenant: str | None, is_long: bool, after: int | None) -> Scope:
        return block_scope(envelope, tenant, False, after)

    hits, found = shared_prefix(folders["model"], parts={"scope": same})
    assert hits == [0, 16, 0, 16]
    assert differing(right, found, exact=False)


# ---- drafts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [{"num_draft_tokens": 4}, {"draft_tree": (2, 1)}, {"draft_verification": "rejection"}],
    ids=["chain", "tree", "rejection"],
)
def test_a_draft_model_has_the_sides_of_its_target(
    folders: dict[str, Path], options: dict[str, Any], backend: str
) -> None:
    """The model drafts for itself: every draft is right, on both sides."""
    common = {"draft_model": folders["model"], "adaptive_draft": False, **options}
    llm = load(folders["model"], backend, **common)
    assert rejected(llm, options) == [0, 0]
    llm = load(folders["model"], backend, **common)
    llm.engine.speculation.drafter._has_long_rope = False  # type: ignore[union-attr]
    short, long = rejected(llm, options)
    assert short == 0 and long > 0, "control: drafts with the keys of the other side are wrong"


def rejected(llm: LLM, options: dict[str, Any]) -> list[int]:
    """Rejected drafts of a short and of a long prompt; of a tree only its best branch counts."""
    counts = []
    for ids, tokens in ((prompt(10), 20), (prompt(50), 40)):
        metrics = llm.generate(ids, params(tokens))[0].metrics
        assert metrics.drafted > 0
        branches = 2 if "draft_tree" in options else 1
        counts.append(metrics.drafted // branches - metrics.accepted)
    return counts


def test_a_draft_with_another_original_length_is_short_only(folders: dict[str, Path], tmp_path: Path) -> None:
    draft = longrope.make_folder(tmp_path, longrope.SHORT, longrope.LONG, original_max_position_embeddings=48)
    llm = load(folders["model"], draft_model=draft, adaptive_draft=False)
    assert llm.engine.speculation.drafter._max_model_len == 48  # type: ignore[union-attr]
    same = load(folders["model"], draft_model=folders["long_only"], adaptive_draft=False)
    assert same.engine.speculation.drafter._max_model_len == CONTEXT  # type: ignore[union-attr]
