"""What a request did not get makes no figure better: percentiles, rates, spread."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from virtual import ScriptedEngine, VirtualClock

from minillm.bench.load import generator
from minillm.bench.load.figures import figures
from minillm.bench.load.generator import Generator, Run
from minillm.bench.load.plan import LoadRequest
from minillm.bench.load.runs import finite, summarise_runs
from minillm.bench.load.validity import spread
from minillm.cli.bench_workload import MISSED, print_workload
from minillm.config import SamplingParams
from minillm.errors import QueueFull
from minillm.observe.slo import Slo


@pytest.fixture(autouse=True)
def binary_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """All times are sums of powers of two: they are exact, and are compared with `==`."""
    monkeypatch.setattr(generator, "LEAD_SECONDS", 0.25)


class Closing(ScriptedEngine):
    """Takes one request and refuses all others."""

    def add_request(self, prompt: Sequence[int], params: SamplingParams, tenant: str | None = None) -> str:
        if self._count:
            raise QueueFull("closed")
        return super().add_request(prompt, params, tenant)


def play(requests: list[LoadRequest], **engine: Any) -> Run:
    clock = VirtualClock()
    return Generator(ScriptedEngine(clock, lambda step: 1.0, **engine), clock, requests).run()


def request(at: float = 0.0, tokens: int = 1, **more: Any) -> LoadRequest:
    return LoadRequest((1, 2, 3), tokens, at, **more)


def found_of(requests: list[LoadRequest], **engine: Any) -> dict[str, Any]:
    return figures(play(requests, **engine), Slo(), 16)


def test_a_refused_request_is_a_miss_in_the_percentiles() -> None:
    """Five at once, one place, two may wait: two get nothing, and p90 says so."""
    found = found_of([request(0.5, 9) for _ in range(5)], batch=1, queue=2)
    assert found["failed"] == 2
    assert found["ttft"]["p50"] < math.inf and found["e2e"]["p50"] < math.inf
    assert found["ttft"]["p90"] == found["e2e"]["p90"] == math.inf
    served = found_of([request(0.5, 9) for _ in range(3)], batch=1, queue=2)  # control
    assert served["failed"] == 0 and served["ttft"]["p99"] < math.inf and served["e2e"]["p99"] < math.inf


def test_a_user_who_gives_up_does_not_make_the_first_token_quicker() -> None:
    found = found_of([request(0, 9), request(0.5, cancel_after=0.25)])
    assert found["ttft"]["p50"] == 1.0 and found["ttft"]["p99"] == math.inf


def test_a_run_lasts_until_its_last_request_was_refused() -> None:
    """One is served in the first second, the others are refused at 16 s: 1/16 in a second, not 1."""
    requests = [request(0, 1), *(request(16.0, 1) for _ in range(4))]
    clock = VirtualClock()
    found = figures(Generator(Closing(clock, lambda step: 1.0), clock, requests).run(), Slo(), 16)
    assert found["failed"] == 4
    assert found["seconds"] == 16.0 and found["goodput_per_s"] == found["requests_per_s"] == 1 / 16
    alone = found_of(requests[:1])  # control: without them the run is as long as the answer
    assert alone["seconds"] == 1.0 and alone["goodput_per_s"] == 1.0


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([0, 0, 8.0], math.inf),
        ([1.0, 2.0, math.inf], math.inf),
        ([math.inf] * 2, 0.0),
        ([0, 0], 0.0),
        ([4.0], 0),
    ],
)
def test_the_spread_of_nothing_and_of_misses(values: list[float], share: float) -> None:
    assert spread(values) == share


@pytest.mark.parametrize(("rates", "is_void"), [([0.0, 0.0, 9.0], True), ([9.0, 9.0, 9.0], False)])
def test_repeats_of_which_most_served_nobody_void_the_run(rates: list[float], is_void: bool) -> None:
    runs = [{"output_tokens_per_s": rate, "e2e": {"p50": 1.0}, "void": []} for rate in rates]
    assert bool(summarise_runs(runs, runs)["void"]) == is_void


def test_a_miss_is_null_in_json_and_a_word_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    run = {**found_of([request(0.5, 9) for _ in range(5)], batch=1, queue=2), "machine": {}, "void": []}
    found = finite(summarise_runs([run, run], [run, run]))
    assert found["figures"]["ttft.p99"]["median"] is None and found["figures"]["ttft.p50"]["median"] == 19.0
    assert "Infinity" not in json.dumps(found, allow_nan=False)
    work = {"name": "poisson", "what": "x", "rate_per_s": 1.0, "duration_s": 1.0, "seed": 0, "trace": None}
    about = {"model": "tiny", "dtype": "float32", "backend": "native", "repeats": 2, "slo": {"ttft_s": None}}
    variants = [{"name": name, **found} for name in ("as configured", "another")]
    print_workload({"workload": work, **about, "variants": variants, "void": found["void"]})
    assert MISSED in capsys.readouterr().out
