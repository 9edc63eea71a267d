"""`minillm demo replay` and `--record`: the files that they write, and what they refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from minillm.cli.main import main
from minillm.cli.options import record_option
from minillm.cli.parser import USAGE_ERROR
from minillm.observe.trace_file import read_trace

GENERATE = ["generate", "storyteller-1m", "-p", "Once", "-n", "4", "--quiet", "--kv-memory", "1MiB"]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.jsonl"
    assert main([*GENERATE, "--record", str(path)]) == 0
    return path


def test_generate_records(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [event.kind for event in read_trace(run_file).events]
    assert kinds.count("step") == kinds.count("blocks") == 4 and kinds[0] == "queue"
    assert main([*GENERATE, "--record", str(run_file)]) == USAGE_ERROR
    assert "exists already" in capsys.readouterr().err


def test_replay_makes_the_page_beside_the_run(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "replay", str(run_file)]) == 0
    page = run_file.with_suffix(".html")
    assert f"{page}: " in capsys.readouterr().out and page.read_text().startswith("<!DOCTYPE html>")


def test_replay_writes_what_is_asked_for(run_file: Path, tmp_path: Path) -> None:
    chrome, page = tmp_path / "chrome.json", tmp_path / "page.html"
    assert main(["demo", "replay", str(run_file), "--chrome-trace", str(chrome)]) == 0
    assert json.loads(chrome.read_text())["traceEvents"] and not page.exists()
    assert main(["demo", "replay", str(run_file), "--out", str(page), "--chrome-trace", str(chrome)]) == 0
    assert page.exists()


def test_a_cut_run_is_said(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.jsonl").write_bytes(run_file.read_bytes()[:-9])
    assert main(["demo", "replay", str(tmp_path / "cut.jsonl")]) == 0
    assert "the last line of the file was cut" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["{run}", "--out", "{run}"], 2, "is the recorded run itself"),
        (["{run}", "--chrome-trace", "{run}"], 2, "is the recorded run itself"),
        (["{run}", "--out", "{run}.hard"], 2, "is the recorded run itself"),
        (["{run}", "--chrome-trace", "{run}.soft"], 2, "is the recorded run itself"),
        (["{run}", "--out", "{run}.a", "--chrome-trace", "{run}.a"], 2, "the page and the trace at once"),
        (["{run}", "--out", "{run}/x"], 3, "cannot be written"),
        (["{run}.no"], 3, "No such file"),
        (["pyproject.toml"], 2, "is no recorded run"),
        (["README.md"], 2, "is no recorded run"),
    ],
)
def test_what_is_refused(
    run_file: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    before = run_file.read_bytes()
    for link, make in ((".hard", os.link), (".soft", os.symlink)):  # other names of the same file
        other = f"{run_file}{link}"
        if not os.path.lexists(other):
            make(run_file, other)
    assert main(["demo", "replay", *(word.format(run=run_file) for word in words)]) == code
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1 and run_file.read_bytes() == before


def test_another_file_with_the_same_content_is_written_over(run_file: Path, tmp_path: Path) -> None:
    """The control: only the run itself is protected."""
    (tmp_path / "copy").write_bytes(run_file.read_bytes())
    assert main(["demo", "replay", str(run_file), "--out", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy").read_text().startswith("<!DOCTYPE html>")


def test_kernels_have_nothing_to_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", "--record", str(tmp_path / "run")]) == USAGE_ERROR
    assert "nothing to record" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_each_engine_of_a_bench_has_its_own_file() -> None:
    from argparse import Namespace

    args = Namespace(record="a/run.jsonl")
    paths = [str(record_option(args)["record"]) for _ in range(3)]
    assert paths == ["a/run.jsonl", "a/run-2.jsonl", "a/run-3.jsonl"] and record_option(Namespace()) == {}
