"""`minillm bench serving --workload` on a tiny model: every request ends, and the report says what happened.

The sizes of figures are not tested: the machine is busy.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console

from minillm import LLM
from minillm.bench.load import validity
from minillm.bench.load.clock import RealClock
from minillm.bench.load.figures import figures
from minillm.bench.load.generator import Generator
from minillm.bench.load.live import LiveState, block_map, live_view
from minillm.bench.load.plan import LoadRequest, Settings
from minillm.bench.load.runs import BASE, Bench
from minillm.bench.load.validity import Reading
from minillm.bench.load.workloads import WORKLOADS, make_plan
from minillm.cli.bench_workload import NAMES, print_workload
from minillm.cli.main import main
from minillm.observe.events import Event
from minillm.observe.slo import Slo

SHORT = Settings(rate=40.0, duration=0.3)
SMALL = {"kv_memory": tiny.blocks(80)}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    row = {"input_length": 1100, "output_length": 90, "hash_ids": [1, 2, 3]}
    path.write_text("".join(json.dumps({"timestamp": 40 * i} | row) + "\n" for i in range(8)))
    return path


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is void here: whether this machine is quiet is not what is tested."""
    monkeypatch.setattr(validity, "LATE_SECONDS", 1e9)
    monkeypatch.setattr(validity, "SPREAD_OF", ())
    for name in ("MAX_WAITING", "MAX_STEAL", "MAX_SPIN_CHANGE"):
        monkeypatch.setattr(validity, name, 1e9)


def settings_of(name: str, trace: Path, settings: Settings = SHORT) -> Settings:
    return replace(settings, rate=None, trace=trace) if name == "trace" else settings


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_request_of_every_workload_ends(name: str, folder: Path, trace: Path) -> None:
    plan = make_plan(name, settings_of(name, trace), 128, tiny.VOCAB_SIZE)
    llm = tiny.load(folder, **SMALL, **plan.options)
    pinned = llm.engine.stats()["used_blocks"]
    requests = [replace(request, gap=request.gap / 50) for request in plan.requests]
    run = Generator(llm.engine, RealClock(), requests).run()
    found = figures(run, Slo(), 16, plan.watched)
    assert all(record.is_over for record in run.records) and found["failed"] == 0
    assert not llm.engine.has_unfinished_requests() and llm.engine.stats()["used_blocks"] == pinned
    whole = [r for r in run.records if not r.is_cancelled]
    produced = sum(r.request.max_tokens for r in whole)
    assert found["requests"] == len(requests)
    assert found["output_tokens_per_s"] * found["seconds"] >= produced - 1e-6
    assert all(r.started is not None and r.intended is not None and r.started >= r.intended for r in whole)
    if name in ("chat", "rag", "agents", "tenants", "trace"):
        assert found["hit_rate"] > 0  # they share beginnings
    if name in ("poisson", "bursts"):
        assert found["hit_rate"] == 0


def test_control_without_its_public_prefix_each_tenant_computes_the_prompt(folder: Path) -> None:
    plan = make_plan("tenants", SHORT, 128, tiny.VOCAB_SIZE)
    rates = {}
    for name, options in (("public", plan.options), ("own", plan.variants["no public prefix"])):
        run = Generator(tiny.load(folder, **options).engine, RealClock(), plan.requests).run()
        rates[name] = figures(run, Slo(), 16)["hit_rate"]
    assert rates["public"] > rates["own"]


def test_a_tenant_with_a_guarantee_is_served_during_a_flood(folder: Path) -> None:
    plan = make_plan("flood", replace(SHORT, rate=8.0), 128, tiny.VOCAB_SIZE)
    llm = tiny.load(folder, **SMALL, **plan.variants["a guarantee"])
    found = figures(Generator(llm.engine, RealClock(), plan.requests).run(), Slo(), 16, plan.watched)
    assert found["failed"] == 0 and found["watched"]["requests"] > 0 and found["watched"]["slo_met"] == 1.0


def test_a_request_that_can_never_fit_is_a_failure_with_its_type(folder: Path) -> None:
    too_long = LoadRequest(tuple(range(2, 302)), 4)
    run = Generator(tiny.load(folder).engine, RealClock(), [too_long, replace(too_long, tokens=(5, 6))]).run()
    assert [record.failure for record in run.records] == ["PromptTooLong", None]


def quiet() -> Reading:
    return Reading(0.0, None, None, 1.0)


def small_bench(folder: Path, name: str, **more: Any) -> Bench:
    def load(**changes: Any) -> LLM:
        return tiny.load(folder, **(SMALL | changes))

    return Bench(load, name, replace(SHORT, rate=20.0), machine=quiet, repeats=2, **more)


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize("name", ["tenants", "flood"])
def test_the_comparison_runs_in_turns(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = small_bench(folder, name, ablate=True, draft_model="ngram").run()
    names = [variant["name"] for variant in report["variants"]]
    assert names[:5] == [BASE, "whole prompts", "no prefix cache", "one at a time", "drafts"]
    assert names[5:] == (["no public prefix"] if name == "tenants" else ["a guarantee"])
    by_name = {variant["name"]: variant for variant in report["variants"]}
    assert all(len(variant["runs"]) == 2 for variant in report["variants"])
    assert set(by_name[BASE]["ratios"].values()) == {1.0}
    assert by_name["no prefix cache"]["figures"]["hit_rate"]["median"] == 0
    assert by_name["one at a time"]["figures"]["stall_tokens.most"]["high"] <= 1
    assert report["void"] == [] and report["repeats"] == 2
    json.dumps(report, allow_nan=False)
    print_workload(report)
    shown = capsys.readouterr().out
    assert "VOID" not in shown and "one at a time" in shown and "does not tell: waiting, steal" in shown


def test_a_void_report_begins_with_its_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readings = iter([Reading(float(i), 0.0, 0.0, 1.0 + i) for i in range(99)])
    report = replace(small_bench(folder, "poisson"), machine=lambda: next(readings)).run()
    assert any("spin loop" in reason for reason in report["void"])
    print_workload(report)
    shown = capsys.readouterr().out
    assert shown.startswith("VOID: as configured: repeat 1: ") and "VOID, do not use: figures" in shown
    assert "output_tokens_per_s" in shown


# ---- the command -------------------------------------------------------------------------------------


def command(folder: Path, *more: str) -> list[str]:
    sizes = ["--rate", "40", "--duration", "0.2", "--runs", "1", "--kv-memory", "1MiB"]
    return ["bench", "serving", "--model", str(folder), "--workload", "poisson", *sizes, *more]


@pytest.mark.usefixtures("calm")
def test_the_command_prints_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = command(folder, "--json", "--live", "--slo-ttft", "9", "--slo-tpot", "9", "--seed", "3")
    assert main(args) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["void"] == [] and report["slo"] == {"ttft_s": 9.0, "tpot_s": 9.0}
    assert report["workload"]["seed"] == 3 and report["workload"]["name"] == "poisson"
    assert report["machine"]["minillm"] and report["engine"]["max_num_seqs"] == 64
    assert report["live"] is False  # stdout is no terminal


@pytest.mark.parametrize("as_json", [True, False])
def test_a_void_run_ends_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr(validity, "MAX_SPIN_CHANGE", -1.0)
    assert main(command(folder, *(["--json"] if as_json else []))) == 1
    shown = capsys.readouterr().out
    if as_json:
        assert any("spin loop" in reason for reason in json.loads(shown)["void"])
    else:
        assert "VOID: as configured: repeat 1: " in shown


def test_the_names_of_the_help_are_the_workloads() -> None:
    assert tuple(WORKLOADS) == NAMES


@pytest.mark.parametrize(
    "wrong",
    [
        "serving --workload poisson --rate nan",
        "serving --workload poisson --rate -1",
        "serving --workload poisson --rate 1e300",
        "serving --workload poisson --rate 9999 --duration 3600",
        "serving --workload poisson --duration 0",
        "serving --workload poisson --duration inf",
        "serving --workload poisson --slo-ttft nan",
        "serving --workload poisson --slo-tpot 0",
        "serving --workload poisson --runs 0",
        "serving --workload bursts --cv 1e9",
        "serving --workload trace",
        "serving --workload chat --trace x.csv",
        "serving --workload nonsense",
        "serving --rate 3",
        "serving --live",
        "--workload chat",
        "kernels --workload chat",
    ],
)
def test_hostile_flags_are_refused_before_a_model_is_loaded(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", *wrong.split(), "--model", "/no/such/model"])
    except SystemExit as ended:
        code = ended.code  # type: ignore[assignment]
    said = capsys.readouterr()
    assert code == 2 and said.out == "" and said.err.count("\n") == 1 and "Traceback" not in said.err


def test_a_damaged_trace_is_one_line(folder: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace.write_text(trace.read_text() + "{\n")
    args = command(folder, "--trace", str(trace))
    args[args.index("poisson")] = "trace"
    assert main(args) == 2
    assert "trace.jsonl, line 9: no JSON object" in capsys.readouterr().err


# ---- the live view -----------------------------------------------------------------------------------


def screen() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def shown_by(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_picture_by_hand() -> None:
    state, console = LiveState("chat", 60), screen()
    at = {"queue": 1.0, "sample": 1.25}
    state(Event("queue", 0, at["queue"], "a", {}))
    for time in (at["sample"], 1.75):
        state(Event("sample", 1, time, "", {"requests": [("a", 0), ("unknown", 0)]}))
    state(Event("finish", 1, 1.75, "a", {}))
    counts = {"waiting": 3, "running": 2, "prefill_tokens": 7, "decode_rows": 1, "seconds": 0.004}
    state(Event("step", 1, 1.75, "", counts | {"used": 30, "cached": 15}))
    console.print(state.frame())
    shown = shown_by(console)
    assert "waiting 3" in shown and "running 2" in shown and "ended 1" in shown and "step 4.0 ms" in shown
    assert "p50 250.0 ms" in shown and "p50 500.0 ms" in shown
    assert str(block_map(30, 15, 60)) == f"blocks  {'█' * 30}{'▒' * 15}{'·' * 15} 30 used, 15 cached of 60"


def test_the_view_draws_during_a_run_and_leaves_nothing_behind(folder: Path) -> None:
    llm, console = tiny.load(folder), screen()
    with live_view(llm.engine, "a title", console) as draw:
        run = Generator(llm.engine, RealClock(), [LoadRequest((3, 4), 5)], draw).run()
    assert run.records[0].ended is not None and llm.engine.events.listeners == []
    assert "a title" in shown_by(console) and "blocks" in shown_by(console)
