"""`minillm bench quality`: what each scheme loses, measured with the engine's own logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from minillm import LLM
from minillm.bench.quality import run_quality
from minillm.cli.main import main
from minillm.config.quantization import QUANTIZATIONS

STORY = "Once upon a time there was a little dog. He wanted to see the sea. He walked all day. " * 40


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(STORY)
    return path


def test_a_row_for_every_scheme(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "quality", "storyteller-1m", "--json", "--evaluate", str(text)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["quantization"] for row in report["rows"]] == list(QUANTIZATIONS)
    assert report["text"] == str(text) and report["tokens"] % 512 == 0
    rows = {row["quantization"]: row for row in report["rows"]}
    for row in rows.values():
        assert row["bytes_per_step"] < report["bytes_per_step"]
        assert abs(math.log(row["perplexity"] / report["perplexity"])) < 0.5
        assert 0.5 < row["greedy_agreement"] <= 1
    assert rows["int8"]["greedy_agreement"] >= rows["int4-g64"]["greedy_agreement"]


def test_the_perplexity_is_that_of_the_logits(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--evaluate", str(text), "--quantization", "int4", "--kv-dtype", "int8"]
    assert main(["bench", "quality", "storyteller-1m", "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    (row,) = report["rows"]
    llm = LLM("storyteller-1m", quantization="int4", kv_dtype="int8")
    ids = llm.tokenizer.encode(STORY)
    whole = [torch.tensor(ids[start : start + 512]) for start in range(0, len(ids) - 511, 512)]
    losses = [
        torch.nn.functional.cross_entropy(llm.logits(window[:-1].tolist()), window[1:]) for window in whole
    ]
    assert row["perplexity"] == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)
    assert row["perplexity"] != report["perplexity"] and row["kv_dtype"] == "int8"


def test_without_a_text_the_model_writes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.model.compress import text

    monkeypatch.setattr(text, "LENGTH", 16)
    forms = [{"quantization": "int8", "kv_dtype": None}]
    report = run_quality(lambda **changes: LLM("storyteller-1m", **changes), forms)
    assert report["text"] == "written by the model itself" and report["tokens"] == 16 * 16


def test_the_table_and_what_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "quality", "storyteller-1m", "--evaluate", str(text)]
    assert main([*command, "--quantization", "int8"]) == 0
    said = capsys.readouterr().out
    assert "same best token" in said and "int8" in said and str(text) in said
    (tmp_path / "short.txt").write_text("Once")
    for name, code, reason in (("short.txt", 2, "too short"), ("none", 3, "cannot be read")):
        assert main(["bench", "quality", "storyteller-1m", "--evaluate", str(tmp_path / name)]) == code
        assert reason in capsys.readouterr().err
    assert main(["bench", "growth", "storyteller-1m", "--evaluate", str(text)]) == 2
    assert "bench growth reads no text" in capsys.readouterr().err
