"""The bench of speculation: figures made of what they say, on a tiny pair, whose size means nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drafting
import pytest
import tiny

from minillm.bench import drafting_costs, machine, speculation
from minillm.bench.turns import Work, expected_tokens, script_of, speed_up, token_acceptance
from minillm.cli.bench_speculation import print_speculation
from minillm.cli.main import main
from minillm.observe.events import Event
from minillm.speculation.scripted import ScriptedDrafter

WORK = Work(["the cat", "once upon"], 6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return drafting.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BANDWIDTH_BYTES", 8 << 20)
    monkeypatch.setattr(speculation, "LENGTHS", (1, 3))
    monkeypatch.setattr(speculation, "STEPS", 2)
    monkeypatch.setattr(speculation, "ROWS", (1, 4))
    monkeypatch.setattr(drafting_costs, "LONG", 2)
    monkeypatch.setattr(speculation, "COPY", "the cat sat on the mat. " * 3)


def test_expected_tokens_by_hand() -> None:
    """1 + a + a^2 + a^3."""
    assert expected_tokens(0.5, 3) == 1.875
    assert expected_tokens(0.0, 5) == 1 and expected_tokens(1.0, 5) == 6


def test_acceptance_of_compared_tokens() -> None:
    """Of 5 drafts 2 are accepted and the third is rejected; of 2 both are; the others are never compared."""
    event = Event("speculate", 0, 0.0, "", {"outcomes": [(5, 5, 2), (2, 2, 2)]})
    assert token_acceptance([event]) == 4 / 5
    assert token_acceptance([]) == 0


def test_time_outside_both_models_by_hand() -> None:
    """A step of 10 ms: 4 ms drafting, 5 ms verifying. Steps that prefill or do not draft are not counted."""

    def step(seconds: float, prefill_tokens: int = 0) -> dict[str, Any]:
        return {"seconds": seconds, "prefill_tokens": prefill_tokens}

    drafted = {"draft_seconds": 0.004, "verify_seconds": 0.005}
    kinds = [("speculate", drafted), ("step", step(0.010)), ("step", step(0.003))]
    kinds += [("speculate", drafted), ("step", step(0.020, 7))]
    events = [Event(kind, 0, 0.0, "", data) for kind, data in kinds]
    assert drafting_costs.outside_seconds(events) == [(pytest.approx(0.001), 0.010)]


def test_the_batch_from_which_drafts_are_slower() -> None:
    def rows(*speeds: float) -> list[dict[str, Any]]:
        return [{"batch": 2**i, "x": {"median": speed}} for i, speed in enumerate(speeds)]

    assert speculation.loses_from(rows(1.4, 1.1, 0.9, 0.8), "x") == 4
    assert speculation.loses_from(rows(1.4, 0.9, 1.1), "x") is None
    assert speculation.loses_from(rows(0.9, 0.8), "x") == 1


def test_a_script_is_what_the_plain_engine_answers(pair: tuple[Path, Path]) -> None:
    """A script accepts all tokens at acceptance 1, none at 0, and some at 0.5."""
    plain = tiny.load(pair[0])
    script, found = script_of(plain, WORK), list[float]()
    for share in (0.0, 0.5, 1.0):
        parts = {"drafter": lambda model, config, a=share: ScriptedDrafter(script, tiny.VOCAB_SIZE, a)}
        found.append(token_acceptance(WORK.events(tiny.load(pair[0], parts=parts, adaptive_draft=False))))
    assert found[0] == 0 < found[1] < found[2] == 1


def test_different_answers_are_reported(pair: tuple[Path, Path]) -> None:
    """Speculation gives the same answers as the target; another model's answers are reported as different."""
    plain = tiny.load(pair[0])
    assert speed_up(plain, tiny.load(pair[0], draft_model=pair[1]), WORK, 1)["same_answers"]
    other = tiny.make_folder(
        pair[0].parent / "other", drafting.CONFIG, tensors=tiny.weights(drafting.CONFIG, 9)
    )
    assert not speed_up(plain, tiny.load(other), WORK, 1)["same_answers"]


def test_the_whole_bench(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--runs", "1", "--tokens", "6", "--batch", "1", "2", "--dtype", "float32", "--kv-memory", "4MiB"]
    args = ["bench", "speculation", "--model", str(pair[0]), "--draft-model", str(pair[1]), *sizes]
    assert main([*args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = report["pair"]["rows"]
    assert [row["k"] for row in rows] == [1, 3]
    for row in rows:
        shares = row["draft_share"] + row["verify_share"] + row["bookkeeping_share"]
        assert shares == pytest.approx(1) and row["bookkeeping_share"] > 0
        assert row["expected_speed_up"] == pytest.approx(
            expected_tokens(row["token_acceptance"], row["k"]) / row["cost"]
        )
    assert 1 < rows[0]["tokens_per_step"] <= 2
    assert report["acceptance"][0]["tokens_per_step"] == 1
    assert [row["rows"] for row in report["floor"]["rows"]] == [1, 4]
    assert [row["batch"] for row in report["batches"]["rows"]] == [1, 2]
    assert 0 < report["costs"]["outside_s"] < report["costs"]["step_s"]
    assert 0 < report["costs"]["plain_outside_s"] < report["costs"]["plain_step_s"]
    assert {row["drafter"] for row in report["switched_off"]} == {"always wrong", "random tokens"}
    print_speculation(report)
    out = capsys.readouterr().out
    assert "always 5 drafts" in out and "nearly free" in out and "some answers differ" not in out
    report["pair"]["adaptive"]["same_answers"] = False
    print_speculation(report)
    assert "some answers differ" in capsys.readouterr().out
