"""Contract C12: what a tenant inside its guarantee sees does not depend on the others (tenant_worlds.py)."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tenant_worlds as worlds
import tiny
import torch
from tenant_worlds import BLOCK, ITSELF, LIMITS, SYSTEM, View, load, params, watch

from minillm import LLM, MinillmError, SamplingParams
from minillm.config import TenantLimits
from minillm.engine.request import derived_seed
from minillm.errors import KVCapacityError, QueueFull, UnknownRequest, UsageError
from minillm.worker.runner import ModelRunner

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "drafts": {"draft_model": "ngram", "num_draft_tokens": 3},
    "tree": {"draft_model": "ngram", "draft_tree": (2, 1), "adaptive_draft": False},
    "public": {"public_prefixes": [SYSTEM]},
    "draft model": {"draft_model": ITSELF, "adaptive_draft": False},
    "public, draft model": {"draft_model": ITSELF, "public_prefixes": [SYSTEM]},
    "reference": {"backend": "reference"},
}
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=1)


def differing(quiet: View, other: View) -> list[str]:
    """The names of what differs."""
    return [f.name for f in fields(View) if getattr(quiet, f.name) != getattr(other, f.name)]


def finish(llm: LLM, most: int = 3000) -> None:
    steps = 0
    while llm.engine.has_unfinished_requests():
        llm.engine.step()
        steps += 1
        assert steps < most, "requests that never end"


# ---- worlds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "reference"])
def test_in_every_world_the_tenant_sees_the_same(folder: Path, name: str) -> None:
    quiet = watch(load(folder, **OPTIONS[name]))
    assert len(quiet.outputs) > 15 and len(quiet.errors) == 2
    assert max(stats["used_blocks"] for stats in quiet.stats) <= worlds.B_LIMITS.guaranteed_blocks
    warmed = load(folder, **OPTIONS[name])
    worlds.warm(warmed.engine)
    assert differing(quiet, watch(warmed)) == []
    for others in (worlds.flood, worlds.storm):
        llm = load(folder, **OPTIONS[name])
        assert differing(quiet, watch(llm, others)) == []
        assert llm.engine.stats()["running"] > 0, "the flood still runs"
        finish(llm)


def test_control_with_sharing_a_warm_cache_is_seen(folder: Path) -> None:
    quiet = watch(load(folder))
    shared = load(folder)
    worlds.warm(shared.engine, tenant="b")  # as if the tenant were not part of the key
    assert "outputs" in differing(quiet, watch(shared))


def test_the_draft_model_computes_a_public_prefix_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = list[int]()
    rows = ModelRunner.decode_ahead

    def spy(runner: ModelRunner, batch: Any, *rest: Any) -> Any:
        starts.extend(row.start for row in batch)
        return rows(runner, batch, *rest)

    llm = load(folder, **OPTIONS["public, draft model"], adaptive_draft=False)
    monkeypatch.setattr(ModelRunner, "decode_ahead", spy)
    for tenant in ("a", "b", "c"):
        llm.generate([[*SYSTEM, 9, 9]], GREEDY, tenant=tenant)
    assert len(starts) >= 3 and min(starts) == len(SYSTEM)


def test_control_without_limits_only_content_is_the_same(folder: Path) -> None:
    quiet, busy = watch(load(folder, None)), watch(load(folder, None), worlds.flood)
    assert {"outputs", "events", "stats"} <= set(differing(quiet, busy))
    done = [i for i, c in enumerate(worlds.tokens_of(busy)) if all(each[3] for each in c)]
    assert done and all(worlds.tokens_of(quiet)[i] == worlds.tokens_of(busy)[i] for i in done)


def test_a_flood_costs_the_tenant_no_hit_and_no_step(folder: Path) -> None:
    quiet, flooded = watch(load(folder)), watch(load(folder), worlds.flood)
    hits = [[output[3] for output in view.outputs] for view in (quiet, flooded)]
    waits = [[event[1] for event in view.events if event[0] == "admit"] for view in (quiet, flooded)]
    assert hits[0] == hits[1] and max(hits[0]) > 0 and waits[0] == waits[1]
    unlimited = [watch(load(folder, None), others) for others in (worlds.idle, worlds.flood)]
    waits = [[event[1] for event in view.events if event[0] == "admit"] for view in unlimited]
    assert sum(waits[1][:3]) > 3 * sum(waits[0][:3]) or len(waits[1]) < len(waits[0]), "a flood is felt"


def _random_world(chance: random.Random) -> tuple[dict[str, Any], list[Any]]:
    limits: dict[str | None, TenantLimits] = {
        "b": TenantLimits(
            guaranteed_blocks=chance.choice([6, 10, 20, 30]),
            guaranteed_tokens_per_step=chance.choice([4, 8, 24, 40]),
            max_queued_tokens=chance.choice([None, 100]),
            max_blocks=chance.choice([None, 40]),
        )
    }
    if chance.random() < 0.5:
        limits["a"] = TenantLimits(chance.choice([0, 10]), None, chance.choice([0, 8, 16]))
    if chance.random() < 0.5:
        limits[None] = TenantLimits(chance.choice([0, 10]), chance.choice([None, 30]))
    options = OPTIONS[chance.choice([name for name in OPTIONS if name != "reference"])]
    sizes = {"prefill_chunk": chance.choice([5, 16, 64]), "max_num_batched_tokens": chance.choice([64, 70])}
    requests = [
        (
            chance.randrange(30),
            (SYSTEM if chance.random() < 0.5 else []) + [chance.randrange(5, 9)] * chance.randrange(1, 60),
            SamplingParams(
                max_tokens=chance.randrange(1, 20),
                temperature=chance.choice([0.0, 0.8]),
                logprobs=1,
                n=chance.choice([1, 1, 1, 2, 3]),
                priority=chance.choice([0, 0, 0, 1]),
            ),
        )
        for _ in range(chance.randrange(2, 12))
    ]
    return {"limits": limits, **options, **sizes}, requests


def _check_random_world(folder: Path, seed: int) -> bool:
    """Whether b stayed inside its guarantee; then all it saw was the same. All requests end in any case."""
    chance = random.Random(seed)
    options, requests = _random_world(chance)
    if any(p.n > options["limits"]["b"].guaranteed_tokens_per_step for _, _, p in requests):
        return False
    quiet = watch(load(folder, **options), requests=requests)
    most = options["limits"]["b"].guaranteed_blocks
    needed = [-(-(len(prompt) + 1) // BLOCK) + p.n - 1 for _, prompt, p in requests]  # at its start
    is_inside = max(*needed, *(stats["used_blocks"] for stats in quiet.stats)) <= most
    warmed = load(folder, **options)
    worlds.warm(warmed.engine)
    engines = {"warm": (warmed, worlds.idle)}
    engines |= {f.__name__: (load(folder, **options), f) for f in (worlds.flood, worlds.storm)}
    for name, (llm, others) in engines.items():
        seen = watch(llm, others, seed, requests=requests)
        assert not is_inside or differing(quiet, seen) == [], (seed, name)
        finish(llm)
        memory = llm.engine.memory
        assert memory.pool.num_blocks - memory.available == memory.public.num_blocks, (seed, name)
    return is_inside


def test_random_worlds(folder: Path) -> None:
    assert sum(_check_random_world(folder, seed) for seed in range(5)) >= 1


@pytest.mark.slow
def test_random_worlds_in_the_long_form(folder: Path) -> None:
    assert sum(_check_random_world(folder, seed) for seed in range(100, 220)) >= 20


# ---- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"guaranteed_blocks": -1},
        {"guaranteed_blocks": 1.5},
        {"guaranteed_blocks": True},
        {"guaranteed_blocks": None},
        {"max_blocks": 0},
        {"max_blocks": 5, "guaranteed_blocks": 6},
        {"guaranteed_tokens_per_step": "3"},
        {"max_queued_tokens": 10**30},
    ],
    ids=str,
)
def test_limits_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TenantLimits(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        ["b"],
        {"b": {"guaranteed_blocks": 3}},
        {3: TenantLimits()},
        {"\ud800": TenantLimits()},
        {"b": TenantLimits(guaranteed_blocks=61)},
        {"b": TenantLimits(30), "a": TenantLimits(20), None: TenantLimits(11)},
        {"b": TenantLimits(guaranteed_tokens_per_step=40), None: TenantLimits(guaranteed_tokens_per_step=25)},
        {str(i): TenantLimits(guaranteed_tokens_per_step=1) for i in range(13)},
    ],
    ids=str,
)
def test_limits_that_no_engine_can_keep(folder: Path, bad: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(folder, bad)
    assert "\n" not in str(caught.value)


def test_guarantees_may_add_up_to_everything(folder: Path) -> None:
    llm = load(folder, {"a": TenantLimits(30, None, 32), "b": TenantLimits(30, None, 32)})
    outputs = [llm.generate([[5] * 40], GREEDY, tenant=tenant)[0] for tenant in "ab"]
    assert [output.token_ids for output in outputs] == [outputs[0].token_ids] * 2
    with pytest.raises(UsageError, match="guarantees of other tenants"):
        llm.generate([[5]], GREEDY, tenant="c")


def test_max_blocks_is_never_exceeded_and_others_pass_by(folder: Path) -> None:
    llm = load(folder, {None: TenantLimits(max_blocks=12)})
    engine = llm.engine
    greedy = [engine.add_request([5 + i] * 30, params(10), "a") for i in range(6)]  # 5 blocks each
    other = engine.add_request([9] * 30, params(2), "b")
    finished, most = list[str](), 0
    while engine.has_unfinished_requests():
        finished += [output.request_id for output in engine.step() if output.finished]
        most = max(most, engine.stats("a")["used_blocks"])
    assert 5 < most <= 12 and finished[0] == other and sorted(finished[1:]) == sorted(greedy)
    with pytest.raises(KVCapacityError, match="the tenant's share has 12"):
        llm.generate([[5] * 96], GREEDY, tenant="a")
    (capped,) = llm.generate([[5] * 80], SamplingParams(max_tokens=100, ignore_eos=True), tenant="a")
    assert len(capped.token_ids) == 16 and capped.finish_reason == "length"


def test_parked_requests_can_be_aborted(folder: Path) -> None:
    llm = load(folder, {"a": TenantLimits(max_blocks=5)})
    first, parked, last = (llm.engine.add_request([5 + i] * 30, params(10), "a") for i in range(3))
    llm.engine.step()
    llm.engine.abort_request(parked, "a")
    ended = {}
    while llm.engine.has_unfinished_requests():
        ended |= {o.request_id: o.finish_reason for o in llm.engine.step() if o.finished}
    assert ended == {first: "length", parked: "cancelled", last: "length"} and tiny.all_free(llm)


def test_a_full_queue_of_one_tenant_is_not_another_s(folder: Path) -> None:
    llm = load(folder, {"b": TenantLimits(10, None, 16)}, max_queued_requests=3)
    for _ in range(3):
        llm.engine.add_request([5] * 9, GREEDY, "a")
    with pytest.raises(QueueFull):
        llm.engine.add_request([5] * 9, GREEDY, "c")
    for _ in range(3):
        llm.engine.add_request([5] * 9, GREEDY, "b")
    with pytest.raises(QueueFull):
        llm.engine.add_request([5] * 9, GREEDY, "b")
    finish(llm)


def test_a_failed_step_keeps_the_guarantee(folder: Path) -> None:
    """The pool is replaced in the middle; shares, lanes and public blocks are made anew."""
    llm = load(folder, public_prefixes=[SYSTEM])
    expected = llm.generate([[*SYSTEM, 7] * 2], GREEDY, tenant="b")[0]
    engine, schedule = llm.engine, llm.engine.scheduler.schedule
    request = engine.add_request([*SYSTEM, 7] * 2, GREEDY, "b")

    def interrupted(now: float) -> Any:
        schedule(now)
        raise KeyboardInterrupt

    engine.scheduler.schedule = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    assert outputs[request].token_ids == expected.token_ids
    assert outputs[request].logprobs == expected.logprobs
    again = llm.generate([[*SYSTEM, 7] * 2], GREEDY, tenant="c")[0]
    assert again.metrics.cached_tokens == len(SYSTEM), "the public blocks are there again"


# ---- seeds and handles ----------------------------------------------------------------------------


def test_default_seeds_count_the_tenant_s_own_requests(folder: Path) -> None:
    llm = tiny.load(folder, seed=5)
    for tenant in ("a", "b", None, "a", "b", "b"):
        llm.generate([[5]], SamplingParams(max_tokens=1), tenant=tenant)
    seeds = [
        llm.generate([[5]], SamplingParams(max_tokens=1), tenant=t)[0].outputs[0].seed for t in ("b", None)
    ]
    assert seeds == [derived_seed(5, "b", 3), derived_seed(5, None, 1)]
    assert len({derived_seed(5, tenant, 0) for tenant in (None, "a", "b", "")}) == 4


def test_ids_tell_nothing(folder: Path) -> None:
    llm = tiny.load(folder)
    ids = [llm.engine.add_request([5], GREEDY, "a") for _ in range(50)]
    numbers = [int(request_id.removeprefix("req-"), 16) for request_id in ids]
    assert len(set(ids)) == 50 and numbers != sorted(numbers) and min(map(len, ids)) >= 36
    finish(llm)


def test_a_foreign_request_looks_like_an_unknown_one(llm: LLM) -> None:
    engine = llm.engine
    mine, ended = engine.add_request([5] * 9, GREEDY, "a"), engine.add_request([5], GREEDY, "b")
    engine.abort_request(ended, "b")
    engine.step()
    errors = []
    for request_id, tenant in (
        (mine, "b"),
        (mine, None),
        ("req-0", "b"),
        (ended, "b"),
        (None, "b"),
        ([], "b"),
    ):
        with pytest.raises(UnknownRequest) as caught:
            engine.abort_request(request_id, tenant)  # type: ignore[arg-type]
        errors.append(str(caught.value))
    assert len(set(errors)) == 1 and "req" not in errors[0].replace("request", "")
    engine.step()
    assert engine.stats("a")["running"] == 1
    engine.abort_request(mine, "a")
    engine.step()
    assert engine.stats("a")["running"] == 0


@pytest.mark.parametrize("limits", [None, LIMITS], ids=["no limits", "limits"])
def test_counts_of_a_tenant_are_its_own(folder: Path, limits: Any) -> None:
    llm = load(folder, limits)
    for _ in range(9):
        llm.engine.add_request([6] * 20, params(30), "a")
    llm.engine.add_request([5] * 20, params(30), "b")
    llm.engine.step()
    llm.engine.step()
    stats = llm.engine.stats("b")
    (mine,) = [s for s in llm.engine.scheduler.running if s.tenant == "b"]
    assert stats["running"] == 1 and stats["waiting"] == 0
    assert stats["used_blocks"] == len(mine.block_table.block_ids) > 0
    assert stats["num_blocks"] == (20 if limits else 0)
    assert llm.engine.stats("nobody") == dict.fromkeys(stats, 0)
    finish(llm)
    assert llm.engine.stats("b")["cached_blocks"] == 6 and llm.engine.stats()["cached_blocks"] > 6


# ---- public prefixes ------------------------------------------------------------------------------


def test_a_public_prefix_is_computed_once_for_all_tenants(folder: Path) -> None:
    llm, plain = load(folder, None, public_prefixes=[SYSTEM]), load(folder, None)
    with llm.engine.events.record() as trace:
        outputs = [llm.generate([[*SYSTEM, 7, i + 5]], GREEDY, tenant=f"t{i}")[0] for i in range(20)]
    computed = sum(e["end"] - e["start"] for e in trace if e.kind == "prefill_chunk")
    assert computed == 20 * 2 and all(o.metrics.cached_tokens == 24 for o in outputs)
    expected = [plain.generate([[*SYSTEM, 7, i + 5]], GREEDY, tenant=f"t{i}")[0] for i in range(20)]
    assert all(o.metrics.cached_tokens == 0 for o in expected), "control: without it each computes its own"
    for mine, theirs in zip(outputs, expected, strict=True):
        assert mine.token_ids == theirs.token_ids
        pairs = zip(mine.logprobs or [], theirs.logprobs or [], strict=True)
        assert all(torch.equal(*(torch.tensor([*x.values()]) for x in pair)) for pair in pairs)
    assert llm.engine.stats()["used_blocks"] == 3, "pinned"


def test_private_blocks_after_public_ones_stay_private(folder: Path) -> None:
    llm = load(folder, None, public_prefixes=[SYSTEM, SYSTEM[:8] + [9] * 8])
    prompt = [*SYSTEM, *[7] * 20]
    first, again, other = (llm.generate([prompt], GREEDY, tenant=t)[0] for t in ("a", "a", "b"))
    assert [o.metrics.cached_tokens for o in (first, again, other)] == [24, 40, 24]
    branch = llm.generate([[*SYSTEM[:8], *[9] * 8, *[7] * 20]], GREEDY, tenant="a")[0]
    assert branch.metrics.cached_tokens == 16, "the same ids after another beginning are other blocks"


def test_a_full_pool_evicts_no_public_block(folder: Path) -> None:
    llm = load(folder, None, public_prefixes=[SYSTEM], kv_memory=20 * BLOCK * tiny.BLOCK_BYTES)
    llm.generate([[i + 5] * 60 for i in range(9)], params(20), tenant="a")
    assert llm.generate([[*SYSTEM, 5]], GREEDY, tenant="b")[0].metrics.cached_tokens == 24
    with pytest.raises(KVCapacityError, match="the tenant's share has 17"):
        llm.generate([[5] * 140], GREEDY)
    (capped,) = llm.generate([[5] * 100], SamplingParams(max_tokens=100, ignore_eos=True))
    assert len(capped.token_ids) == 36


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("text", UsageError),
        ([3], UsageError),
        ([""], UsageError),
        ([[5, 10**6]], UsageError),
        ([[5] * 300], MinillmError),
        ([[5 + i] * 200 for i in range(3)], KVCapacityError),
    ],
    ids=lambda v: str(v)[:20],
)
def test_bad_public_prefixes(folder: Path, bad: Any, kind: type[MinillmError]) -> None:
    with pytest.raises(kind):
        load(folder, None, public_prefixes=bad)
    with pytest.raises(UsageError, match="prefix_caching"):
        load(folder, None, public_prefixes=[SYSTEM], prefix_caching=False)


def test_text_is_found_with_and_without_bos(tmp_path: Path) -> None:
    made = tiny.make_folder(tmp_path / "m", tokenizer=tiny.byte_level_tokenizer(bos=True))
    llm = tiny.load(made, public_prefixes=["once upon a time there was a cat the cat"], block_size=4)
    text = "once upon a time there was a cat the cat sat on the mat"
    ids = llm.tokenizer.encode(text, add_special_tokens=False)
    assert llm.generate(text, GREEDY)[0].metrics.cached_tokens >= 4
    assert llm.generate([ids], GREEDY)[0].metrics.cached_tokens >= 4


# ---- what is left behind --------------------------------------------------------------------------


def _poison(llm: LLM, is_chosen: Callable[[int], bool]) -> None:
    cache = llm.engine.worker.runner.cache
    for block in filter(is_chosen, range(llm.engine.pool.num_blocks)):
        for tensor in (*cache.k, *cache.v):
            tensor[block].fill_(float("nan"))


@pytest.mark.parametrize("limits", [None, LIMITS], ids=["no limits", "limits"])
def test_blocks_that_change_tenant_leave_nothing_readable(folder: Path, limits: Any) -> None:
    prompt = [*SYSTEM, 7, 8, 9]
    expected = load(folder, limits).generate([prompt], GREEDY, tenant="b")[0]
    llm = load(folder, limits)
    llm.generate([[6] * 200, prompt], GREEDY, tenant="a")
    _poison(llm, lambda block: True)  # all that a has left, cached or free
    found = llm.generate([prompt], GREEDY, tenant="b")[0]
    assert found.error is None and found.token_ids == expected.token_ids
    assert found.logprobs == expected.logprobs
    _poison(llm, lambda block: True)
    control = llm.generate([prompt], GREEDY, tenant="b")[0]
    assert control.error is not None, "control: b's own cached blocks are read"


def test_an_error_holds_no_other_caller_s_prompt(folder: Path) -> None:
    """Both prompts were in the step that failed; what each caller gets reaches its own only."""

    def failing(*args: Any) -> Any:
        raise RuntimeError("a part")

    llm = tiny.load(folder, parts={"sampler": failing})
    secret = list(range(100, 131))
    ids = {llm.engine.add_request(p, GREEDY, t): t for p, t in ((secret, "a"), ([5, 6], "b"))}
    outputs = []
    with pytest.raises(RuntimeError):
        llm.engine.step()
    outputs = {ids[output.request_id]: output for output in llm.engine.step()}
    error = outputs["b"].error
    assert error is not None and error.__traceback__ is None and error.__cause__ is error.__context__ is None
    assert not _reaches(error, secret) and _reaches(outputs["a"], secret), "control: a's output has it"


def _reaches(start: object, secret: list[int]) -> bool:
    seen, waiting = set[int](), [start]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, type) or callable(value):
            continue
        seen.add(id(value))
        if isinstance(value, list | tuple) and list(value)[: len(secret)] == secret:
            return True
        waiting += gc.get_referents(value)
    return False


WITHOUT_ASSERTIONS = """
import sys
from pathlib import Path
import tenant_worlds as worlds
from test_tenants import differing
folder = Path(sys.argv[1])
quiet = worlds.watch(worlds.load(folder))
seen = [worlds.watch(worlds.load(folder), others) for others in (worlds.flood, worlds.storm)]
found = [differing(quiet, view) for view in seen]
control = differing(quiet, worlds.watch(worlds.load(folder, None), worlds.flood))
print(__debug__, found, "outputs" in control)
"""


def test_the_same_without_assertions(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-c", WITHOUT_ASSERTIONS, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False [[], []] True\n"
