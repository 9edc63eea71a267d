"""A run that was disturbed is void and says why; a quiet one is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from virtual import ScriptedEngine, VirtualClock

from minillm.bench.load import validity
from minillm.bench.load.figures import figures, fragmentation
from minillm.bench.load.generator import Generator, Run
from minillm.bench.load.plan import LoadRequest
from minillm.bench.load.runs import flatten, summarise_runs
from minillm.bench.load.stalls import stalls
from minillm.bench.load.validity import Reading, disturbances, read_machine, reasons, spread_reasons
from minillm.errors import UsageError
from minillm.observe.events import Event
from minillm.observe.slo import Slo

QUIET = Reading(now=100.0, waited=5.0, stolen=2.0, spin=0.002)
LATER = replace(QUIET, now=110.0, waited=5.1, stolen=2.05, spin=0.0021)


def run(late: float = 0.0) -> Run:
    """Ten requests, one per second: a request may be 10 ms late."""
    clock = VirtualClock(late)
    requests = [LoadRequest((1,), 2, float(i)) for i in range(10)]
    return Generator(ScriptedEngine(clock, lambda step: 0.1), clock, requests).run()


def why(late: float = 0.0, after: Reading = LATER) -> list[str]:
    return reasons(run(late), disturbances(QUIET, after))


def test_a_quiet_run_counts() -> None:
    assert why() == [] and why(late=0.0099) == []


def test_control_a_late_generator_voids_the_run() -> None:
    (reason,) = why(late=0.0101)
    assert "10 of 10 requests were submitted late" in reason and "more than 10.0 ms" in reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waited": 5.21}, "waited for a core: 2.1%"),
        ({"stolen": 2.11}, "hypervisor took the cores: 1.1%"),
        ({"spin": 0.00221}, "spin loop changed its speed: 10.5%"),
        ({"spin": 0.0018}, "spin loop changed its speed: 11.1%"),
    ],
)
def test_control_a_disturbed_machine_voids_the_run(changes: dict[str, float], words: str) -> None:
    (reason,) = why(after=replace(LATER, **changes))
    assert words in reason


def test_what_the_system_does_not_tell_is_none_and_no_reason() -> None:
    blind = replace(QUIET, waited=None, stolen=None)
    found = disturbances(blind, replace(LATER, waited=None, stolen=None))
    assert found["waiting"] is None and found["steal"] is None
    assert reasons(run(), found) == []


def test_a_failed_step_voids_the_run() -> None:
    assert reasons(replace(run(), failed_steps=["RuntimeError"]), {}) == [
        "1 steps failed, first with RuntimeError"
    ]


def test_this_machine_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, after = read_machine(), read_machine()
    shares = disturbances(before, after)
    assert before.spin > 0 and after.now > before.now and set(shares) == {"waiting", "steal", "spin_change"}
    assert all(share is None or share >= 0 for share in shares.values())
    monkeypatch.setattr(validity, "Path", lambda path: tmp_path / "none")
    assert read_machine().waited is None and read_machine().stolen is None


def test_steal_and_waiting_are_read_from_the_right_fields(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "stat").write_text("cpu  1 2 3 4 5 6 7 800 9 10\ncpu0 0\n")
    (tmp_path / "schedstat").write_text("123 2500000000 7\n")
    monkeypatch.setattr(validity, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    monkeypatch.setattr(validity.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(validity.os, "cpu_count", lambda: 4)
    found = read_machine()
    assert found.stolen == 2.0 and found.waited == 2.5


def test_repeats_that_differ_void_the_run_and_alike_ones_do_not() -> None:
    def repeats(*rates: float) -> list[dict[str, object]]:
        return [{"output_tokens_per_s": rate, "e2e": {"p50": 1.0}, "void": []} for rate in rates]

    alike, apart = repeats(100.0, 110.0, 124.0), repeats(100.0, 110.0, 130.0)
    assert summarise_runs(alike, alike)["void"] == []
    (reason,) = summarise_runs(apart, alike)["void"]
    assert "differ by 27% in output_tokens_per_s" in reason
    assert spread_reasons({}) == []


def test_ratios_are_of_pairs_of_one_repeat() -> None:
    def repeats(*rates: float) -> list[dict[str, object]]:
        return [{"output_tokens_per_s": rate, "void": ["slow"] if rate < 2 else []} for rate in rates]

    found = summarise_runs(repeats(1.0, 20.0, 300.0), repeats(2.0, 10.0, 100.0))
    assert found["ratios"] == {"output_tokens_per_s": 2.0}  # the median of 1/2, 2 and 3
    assert found["void"][0] == "repeat 1: slow"
    assert flatten({"a": 1, "b": {"c": None, "d": {"e": 2.5}}, "f": ["x"]}) == {
        "a": 1,
        "b.c": None,
        "b.d.e": 2.5,
    }


def test_the_figures_of_a_run_say_how_late_it_was() -> None:
    found = figures(run(0.5), Slo(), 16)
    assert found["lag_s"]["most"] == pytest.approx(0.5) and found["failed_steps"] == 0


@pytest.mark.parametrize(
    "limits", [{"ttft": 0.0}, {"ttft": -1.0}, {"tpot": float("nan")}, {"itl": float("-inf")}]
)
def test_an_slo_out_of_range(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="slo-"):
        Slo(**limits)


# ---- counted without a clock -------------------------------------------------------------------------


def step(number: int, **kinds: dict[str, object]) -> list[Event]:
    return [Event(kind, number, 0.0, "", data) for kind, data in kinds.items()]


def test_stalls_by_hand() -> None:
    """The picture of `stalls.py`: a prompt of 512 tokens is prefilled whole while A and B decode."""
    both = {"requests": [("A", 0), ("B", 0)]}
    events = [
        *step(1, decode_step={"rows": 2}, sample=both),
        *step(2, prefill_chunk={"start": 0, "end": 512}, decode_step={"rows": 2}, sample=both),
        *step(3, decode_step={"rows": 2}, sample=both),
        *step(4, decode_step={"rows": 2}, sample=both),
    ]
    assert stalls(events) == [514, 2, 2] * 2


def test_stalls_of_drafts_count_all_rows_and_a_preempted_sequence_waits_for_many_steps() -> None:
    a, b = {"requests": [("A", 0)]}, {"requests": [("B", 0), ("B", 0), ("B", 0)]}
    events = [
        *step(1, decode_step={"rows": 1}, sample=a),
        *step(2, decode_step={"rows": 1}, speculate={"rows": 6}, sample=b),
        *step(3, prefill_chunk={"start": 10, "end": 20}),
        *step(4, decode_step={"rows": 1}, sample=a),
    ]
    assert stalls(events) == [6 + 10 + 1, 0, 0]


def test_fragmentation_by_hand() -> None:
    events = step(1, step={"used": 2, "waste": 8}) + step(2, step={"used": 6, "waste": 24})
    assert fragmentation(replace(run(), events=events), 16) == 32 / 128
    assert fragmentation(replace(run(), events=[]), 16) == 0.0
