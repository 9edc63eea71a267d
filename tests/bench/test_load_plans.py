"""Plans: arrivals have the shape that was asked for, traces keep theirs, and every plan fits the context."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from minillm.bench.load.arrivals import gamma_bursts, mean_gap, poisson, scaled
from minillm.bench.load.plan import MAX_REQUESTS, Settings
from minillm.bench.load.workloads import MIN_CONTEXT, WORKLOADS, make_plan
from minillm.errors import UsageError

CONTEXT, VOCAB = 512, 320
SIGNIFICANT = 0.01


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def mooncake(folder: Path, rows: list[tuple[int, int, int, list[int]]]) -> Path:
    """Rows of (milliseconds, input, output, hash ids)."""
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def bursty_trace(folder: Path) -> Path:
    times = gamma_bursts(50.0, 30.0, 2.5, random.Random(3))
    return mooncake(folder, [(round(t * 1000), 100 + i % 40, 20, [i]) for i, t in enumerate(times)])


@pytest.mark.parametrize("seed", range(3))
def test_poisson_gaps_are_exponential(seed: int) -> None:
    times = poisson(20.0, 100.0, random.Random(seed))
    assert stats.kstest(gaps(times), "expon", args=(0, 1 / 20)).pvalue > SIGNIFICANT


@pytest.mark.parametrize("cv", [0.5, 2.0])
def test_burst_gaps_are_gamma(cv: float) -> None:
    times = gamma_bursts(20.0, 200.0, cv, random.Random(1))
    shape = 1 / cv**2
    assert stats.kstest(gaps(times), "gamma", args=(shape, 0, 1 / (shape * 20))).pvalue > SIGNIFICANT


def test_control_the_test_rejects_other_gaps() -> None:
    """Bursts are not Poisson, and neither are regular arrivals."""
    bursts = gamma_bursts(20.0, 100.0, 2.0, random.Random(0))
    regular = [i / 20 for i in range(2000)]
    for times in (bursts, regular):
        assert stats.kstest(gaps(times), "expon", args=(0, 1 / 20)).pvalue < SIGNIFICANT


@pytest.mark.parametrize("rate", [5.0, 400.0])
def test_a_scaled_trace_keeps_the_shape_of_its_gaps(tmp_path: Path, rate: float) -> None:
    path = bursty_trace(tmp_path)
    recorded = [json.loads(line)["timestamp"] / 1000 for line in path.read_text().splitlines()]
    plan = make_plan("trace", Settings(rate=rate, duration=10.0, trace=path), CONTEXT, VOCAB)
    assert plan.source is not None
    factor = plan.source["time_factor"]
    found = gaps([request.at / factor for request in plan.requests])
    assert stats.ks_2samp(found, gaps(recorded)[: len(found)]).pvalue > 0.999  # the same, not only alike
    whole = (recorded[-1] - recorded[0]) / (len(recorded) - 1)
    assert factor == pytest.approx(1 / rate / whole)


def test_control_gaps_that_were_fitted_to_a_run_have_another_shape(tmp_path: Path) -> None:
    """A generator that waits for a server with room for one request at a time flattens the bursts."""
    times = [json.loads(line)["timestamp"] / 1000 for line in bursty_trace(tmp_path).read_text().splitlines()]
    fitted = [times[0]]
    for time in times[1:]:
        fitted.append(max(time, fitted[-1] + 1 / 60))
    assert stats.ks_2samp(gaps(times), gaps(fitted)).pvalue < SIGNIFICANT


def test_times_and_gaps_by_hand() -> None:
    assert scaled([10.0, 11.0, 14.0, 30.0], 0.5, 5.0) == [0.0, 0.5, 2.0]
    assert mean_gap([0.0, 0.5, 2.0]) == 1.0 and mean_gap([3.0]) == 0.0


def test_all_lengths_have_one_factor_and_the_longest_fits(tmp_path: Path) -> None:
    rows = [(0, 2000, 48, [1, 2, 3, 4]), (500, 1000, 500, [5, 6]), (900, 3, 0, [7])]
    plan = make_plan("trace", Settings(trace=mooncake(tmp_path, rows)), 257, VOCAB)
    assert plan.source == {"file": "trace.jsonl", "time_factor": 1.0, "length_factor": 0.125}
    assert [(len(r.tokens), r.max_tokens) for r in plan.requests] == [(250, 6), (125, 62), (1, 1)]
    assert [r.at for r in plan.requests] == [0.0, 0.5, 0.9]


def test_equal_hash_ids_are_equal_tokens(tmp_path: Path) -> None:
    """The scaled block of 512 tokens has 64; the third prompt shares the first block only."""
    rows = [
        (0, 1100, 10, [1, 2, 3]),
        (1, 1200, 10, [1, 2, 4]),
        (2, 600, 10, [1, 5]),
        (3, 2040, 8, [6, 7, 8, 9]),
    ]
    a, b, c, d = (
        r.tokens for r in make_plan("trace", Settings(trace=mooncake(tmp_path, rows)), 257, VOCAB).requests
    )
    assert (len(a), len(b), len(c), len(d)) == (137, 150, 75, 255)
    assert a[:128] == b[:128] and a[128:137] != b[128:137]
    assert a[:64] == c[:64] and a[64:75] != c[64:75] and d[:8] != a[:8]


def settings_for(name: str, folder: Path, **more: Any) -> Settings:
    return Settings(
        **({"rate": 20.0, "duration": 5.0} | more), trace=bursty_trace(folder) if name == "trace" else None
    )


@pytest.mark.parametrize("context", [MIN_CONTEXT, 64, 512])
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_request_fits_the_context(name: str, context: int, tmp_path: Path) -> None:
    plan = make_plan(name, settings_for(name, tmp_path), context, VOCAB)
    total = list[int]()
    for number, request in enumerate(plan.requests):
        before = 0 if request.after is None else total[request.after]
        total.append(before + len(request.tokens) + request.max_tokens)
        assert request.tokens and request.max_tokens >= 1 and request.gap >= 0
        assert request.after is None or request.after < number
        assert all(0 <= token < VOCAB for token in request.tokens)
    assert max(total) <= context


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_is_a_plan_and_a_repeat_has_other_tokens(name: str, tmp_path: Path) -> None:
    settings = settings_for(name, tmp_path)
    first, again = (make_plan(name, settings, CONTEXT, VOCAB) for _ in range(2))
    repeat = make_plan(name, settings, CONTEXT, VOCAB, repeat=1)
    assert first.requests == again.requests and first.options == again.options == repeat.options
    shape = [(r.at, r.after, r.gap, len(r.tokens), r.max_tokens, r.tenant) for r in first.requests]
    assert shape == [(r.at, r.after, r.gap, len(r.tokens), r.max_tokens, r.tenant) for r in repeat.requests]
    assert first.requests[0].tokens != repeat.requests[0].tokens
    if name != "trace":
        assert (
            make_plan(name, settings_for(name, tmp_path, seed=1), CONTEXT, VOCAB).requests != first.requests
        )


@pytest.mark.parametrize("name", ["poisson", "bursts", "rag", "tenants", "chat", "agents"])
def test_the_mean_rate_is_the_one_asked_for(name: str, tmp_path: Path) -> None:
    plan = make_plan(name, settings_for(name, tmp_path, rate=10.0, duration=300.0), 4096, VOCAB)
    assert len(plan.requests) == pytest.approx(3000, rel=0.15)


def test_what_distinguishes_the_workloads(tmp_path: Path) -> None:
    plans = {name: make_plan(name, settings_for(name, tmp_path), CONTEXT, VOCAB) for name in WORKLOADS}
    document = plans["rag"].requests[0].tokens[:256]
    assert all(r.tokens[:256] == document for r in plans["rag"].requests)
    (public,) = plans["tenants"].options["public_prefixes"]
    assert all(list(r.tokens[: len(public)]) == public for r in plans["tenants"].requests)
    assert len({r.tenant for r in plans["tenants"].requests}) == 8
    assert plans["tenants"].variants["no public prefix"] == {"public_prefixes": []}
    watched = [r for r in plans["flood"].requests if r.tenant == plans["flood"].watched]
    assert 5 * len(watched) < len(plans["flood"].requests) and watched
    for name in ("chat", "agents"):
        assert any(r.after is not None for r in plans[name].requests)
    assert any(r.cancel_after is not None for r in plans["agents"].requests)
    assert all(r.after is None and r.cancel_after is None for r in plans["poisson"].requests)
    times = [r.at for r in plans["flood"].requests]
    assert times == sorted(times)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"rate": 0.0},
        {"rate": -1.0},
        {"rate": 1e9},
        {"duration": 0.0},
        {"duration": float("nan")},
        {"duration": 1e9},
        {"cv": 0.0},
        {"cv": float("nan")},
        {"cv": 1e3},
        {"rate": 10_000.0, "duration": 3600.0},
        {"rate": True},
        {"seed": 1.5},
        {"seed": 1 << 5000},
    ],
    ids=lambda wrong: " ".join(wrong),
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as raised:
        Settings(**wrong)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("poisson", Settings(rate=1e-9, duration=1e-9), "no request arrives"),
        ("flood", Settings(rate=MAX_REQUESTS / 1000, duration=900), f"more than {MAX_REQUESTS}"),
        ("none", Settings(), "there is no workload"),
        ("trace", Settings(), "--trace FILE"),
        ("chat", Settings(trace=Path("x.csv")), "--workload trace"),
    ],
)
def test_plans_that_cannot_be_made(name: str, settings: Settings, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_plan(name, settings, CONTEXT, VOCAB)


def test_a_context_without_room() -> None:
    with pytest.raises(UsageError, match="context of 8"):
        make_plan("poisson", Settings(), MIN_CONTEXT - 1, VOCAB)
