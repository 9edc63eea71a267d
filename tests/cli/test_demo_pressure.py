"""`minillm demo pressure`: the load, what is counted of it, and the plan of GPU slices without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm.bench import pressure, slices
from minillm.bench.dry import DryEngine
from minillm.bench.pressure import NEW_TOKENS, Stage, Watcher, run_pressure
from minillm.bench.slices import PROFILES, RESERVE, plan_slices
from minillm.cli.main import main
from minillm.config import EngineConfig
from minillm.engine.engine import Engine
from minillm.errors import UsageError
from minillm.model.families import load_model_config
from minillm.observe.events import Event
from minillm.observe.slo import Slo

STAGES = (Stage(1, 8), Stage(3, 40), Stage(6, 90))


def report(folder: Path, **options: Any) -> dict[str, Any]:
    def load(**changes: Any) -> Any:
        return tiny.load(folder, max_num_batched_tokens=64, prefill_chunk=32, **changes)

    return run_pressure(load, **({"budgets": [tiny.blocks(30)], "slo": Slo(), "stages": STAGES} | options))


def test_only_the_later_stages_are_under_pressure(folder: Path) -> None:
    seen = list[Any]()

    class Seen(Watcher):
        def begin(self, number: int, engine: Engine) -> None:
            assert not engine.has_unfinished_requests()
            seen.append(number)

        def step(self, engine: Engine) -> None:
            seen.append("step")

        def end(self, row: dict[str, Any]) -> None:
            seen.append(row)

    (run,) = report(folder, watcher=Seen())["runs"]
    first, second, third = run["stages"]
    assert (first["preemptions"], second["preemptions"]) == (0, 0) and third["preemptions"] > 0
    assert first["headroom_blocks"] > second["headroom_blocks"] > third["headroom_blocks"] >= 0
    assert third["prefill_tokens"] > 6 * 90, "what was preempted is computed again"
    steps = [stage["steps"] * ["step"] for stage in run["stages"]]
    assert seen == [0, *steps[0], first, 1, *steps[1], second, 2, *steps[2], third]
    for stage in run["stages"]:
        assert stage["peak_used_blocks"] + stage["headroom_blocks"] == run["num_blocks"]
        for times in ("ttft_s", "itl_s", "queue_s", "e2e_s"):
            assert stage[times]["p50"] <= stage[times]["p90"] <= stage[times]["p99"]


def test_a_larger_budget_takes_the_pressure_away(folder: Path) -> None:
    runs = report(folder, budgets=[tiny.blocks(30), tiny.blocks(120)], slo=Slo(ttft=1e-9))["runs"]
    assert [run["stages"][-1]["preemptions"] > 0 for run in runs] == [True, False]
    assert [run["kept"] for run in runs] == [[], []], "nobody answers in a nanosecond"
    easy = report(folder, slo=Slo(ttft=3600.0, itl=3600.0))["runs"][0]
    assert easy["kept"] == [1, 3, 6]


@pytest.mark.parametrize("stage", [*STAGES, Stage(7, 33)])
@pytest.mark.parametrize("num_blocks", [30, 44, 200])
def test_an_engine_without_a_model_plans_the_same(folder: Path, stage: Stage, num_blocks: int) -> None:
    """Steps, preemptions and sequences at once: those of the real engine."""
    options = {"max_num_batched_tokens": 64, "prefill_chunk": 32, "max_num_seqs": 6, "prefix_caching": False}
    llm = tiny.load(folder, kv_memory=tiny.blocks(num_blocks), **options)
    dry = DryEngine(EngineConfig(**options), num_blocks)
    most, steps = 0, 0
    params = tiny_params()
    with llm.engine.events.record() as trace:
        for i in range(stage.requests):
            llm.engine.add_request([(i + k) % 200 + 5 for k in range(stage.context)], params)
            dry.add(stage.context, NEW_TOKENS)
        while llm.engine.has_unfinished_requests():
            llm.engine.step()
            steps += 1
            most = max(most, len(llm.engine.scheduler.running))
    while dry.is_busy:
        dry.step()
    preemptions = sum(event.kind == "preempt" for event in trace)
    assert (dry.steps, dry.preemptions) == (steps, preemptions)
    assert most <= dry.most_running <= 6
    assert dry.memory.pool.num_free == num_blocks


def tiny_params() -> Any:
    from minillm import SamplingParams

    return SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)


def test_the_blocks_of_a_slice(folder: Path) -> None:
    config = load_model_config(folder)
    rows = plan_slices(config, torch.bfloat16, "a100-40", [Stage(2, 16)])
    assert [row["slice"] for row in rows] == list(PROFILES["a100-40"])
    block = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 16
    for row, gigabytes in zip(rows, PROFILES["a100-40"].values(), strict=True):
        assert row["num_blocks"] == (gigabytes * 10**9 - row["fixed_bytes"]) // block
        assert row["fixed_bytes"] > RESERVE + 2 * config.num_parameters
        assert row["stages"] == [
            {"requests": 2, "context": 16, "fits": True, "at_once": 2, "preemptions": 0, "steps": NEW_TOKENS}
        ]


def test_a_slice_holds_more_keys_and_values_in_8_bits(folder: Path, capsys: Any) -> None:
    blocks = []
    for more in ([], ["--kv-dtype", "int8"]):
        assert main(["demo", "pressure", "--slices", "a100-40", "--json", "--model", str(folder), *more]) == 0
        blocks.append(json.loads(capsys.readouterr().out)["slices"][0]["num_blocks"])
    assert blocks[0] < blocks[1]


def test_what_does_not_fit_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_model_config(folder)
    with pytest.raises(UsageError, match="h100-80") as caught:
        plan_slices(config, torch.float32, "abacus")
    assert "a100-40" in caught.value.hint or "a100-40" in str(caught.value)
    monkeypatch.setattr(slices, "RESERVE", 10**12)
    rows = plan_slices(config, torch.float32, "h100-80", [Stage(1, 16)])
    assert all(row["num_blocks"] == 0 and not row["stages"][0]["fits"] for row in rows)


def test_the_default_budget_is_filled_by_the_stage_in_the_middle() -> None:
    budget = pressure.tight_budget(STAGES, 16, 1000)
    assert budget == 3 * -(-(40 + NEW_TOKENS) // 16) * 1000


def test_a_stage_that_the_pool_cannot_hold_is_left_out_and_said(folder: Path) -> None:
    """The figures of other stages and budgets are not lost."""
    few, many = report(folder, budgets=[tiny.blocks(8), tiny.blocks(30)])["runs"]
    assert [stage["context"] for stage in few["stages"]] == [8]
    assert few["too_large"] == [stage._asdict() for stage in STAGES[1:]]
    assert len(many["stages"]) == 3 and many["too_large"] == []


def test_a_context_that_no_stage_fits_is_one_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="no stage of the load fits a context of 256 tokens"):
        report(folder, stages=[Stage(1, 200)])
    with pytest.raises(UsageError, match="no stage"):
        pressure.require_fitting(STAGES, NEW_TOKENS)
    assert pressure.require_fitting(STAGES, NEW_TOKENS + 8) == [STAGES[0]]


def test_a_clock_that_does_not_move_gives_no_throughput(folder: Path) -> None:
    events = list[Event]()
    llm = tiny.load(folder)
    llm.engine.events.listeners.append(events.append)
    pressure.warm_up(llm, STAGES[0])
    assert pressure.figures(events, 9)["tokens_per_s"] > 0  # the control
    still = [replace(event, time=5.0) for event in events]
    assert pressure.figures(still, 9)["tokens_per_s"] == 0.0


def test_a_level_that_was_missed_does_not_hold_above() -> None:
    stages = [{"requests": requests} for requests in (1, 4, 8)]
    for kept, most in (([], 0), ([1, 4, 8], 8), ([1, 8], 1), ([4, 8], 0)):
        assert pressure.holds_up_to({"stages": stages, "kept": kept}) == most


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--slices", ""], "no slices of ''"),
        (["--slices", "a100-40", "--budget", "1MiB"], "--budget has no meaning with --slices"),
        (["--slices", "a100-40", "--slo-ttft", "1"], "--slo-ttft has no meaning"),
        (["--slices", "a100-40", "--kv-memory", "1MiB"], "--kv-memory has no meaning"),
        (["--slices", "a100-40", "--max-model-len", "9"], "--max-model-len has no meaning"),
        (["--slices", "a100-40", "--threads", "0"], "--threads must be at least 1"),
        (["--budget", "1MiB,banana"], "kv_memory='banana' is not a size"),
        (["--budget", "1MiB,0"], "kv_memory must be at least 1"),
        (["--max-model-len", "100"], "no stage of the load fits a context of 100"),
        (["--out", "{file}"], "cannot write to"),
        (["--out", "{file}/x"], "cannot write to"),
        (["--out", "/proc/x", "--slices", "a100-40"], "cannot write to /proc/x"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    text: str,
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("a stage was run")

    monkeypatch.setattr(pressure, "_stage", measured)
    (tmp_path / "file").touch()
    given = [word.format(file=tmp_path / "file") for word in words]
    assert main(["demo", "pressure", str(folder), "--json", *given]) in (2, 3)
    found = capsys.readouterr()
    assert text in found.err and found.err.count("\n") == 1 and found.out == ""


def test_a_figure_that_cannot_be_saved_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pressure, "STAGES", STAGES[:2])
    (tmp_path / "pressure.png").mkdir()
    words = ["demo", "pressure", str(folder), "--budget", "256KiB", "--json", "--out", str(tmp_path)]
    assert main(words) == 3
    found = capsys.readouterr()
    assert "cannot write to" in found.err and found.err.count("\n") == 1
    assert json.loads((tmp_path / "pressure.json").read_text()) == json.loads(found.out)
    (tmp_path / "pressure.png").rmdir()
    assert main(words) == 0 and (tmp_path / "pressure.png").is_file()  # the control
