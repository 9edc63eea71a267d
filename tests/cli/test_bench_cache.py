"""`minillm bench cache`: what it prints, its JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm.bench.cache_sim.generate import conversations
from minillm.cli import bench_cache
from minillm.cli.main import main

SMALL = ["--cache-blocks", "50", "500", "--nodes", "3", "--node-blocks", "40"]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    lines = [json.dumps(request._asdict()) for request in conversations(20)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_json(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    assert main(["bench", "cache", trace, "--json", *SMALL]) == 0
    report = json.loads(capsys.readouterr().out)
    requests = conversations(20)
    blocks = sum(len(request.hash_ids) for request in requests)
    distinct = len({block for request in requests for block in request.hash_ids})
    assert report["name"] == trace
    assert report["trace"] == {
        "requests": len(requests),
        "seconds": (requests[-1].timestamp - requests[0].timestamp) / 1000,
        "prompt_tokens": 512 * blocks,
        "answer_tokens": 300 * len(requests),
        "blocks": blocks,
        "distinct_blocks": distinct,
    }
    assert report["unbounded_hit_rate"] == (blocks - distinct) / blocks
    rows = [(row["blocks"], row["policy"]) for row in report["caches"]]
    assert rows == [(size, policy) for size in (50, 500) for policy in ("LRU", "S3-FIFO")]
    assert [row["nodes"] for row in report["fleets"]] == [3] * 5
    assert all(row["hit_rate"] <= report["unbounded_hit_rate"] for row in report["caches"] + report["fleets"])
    assert main(["bench", "cache", trace, "--json", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_tables(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    assert main(["bench", "cache", trace, "--json", *SMALL]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["bench", "cache", trace, *SMALL]) == 0
    out = capsys.readouterr().out
    figures = [row["hit_rate"] for row in report["caches"] + report["fleets"]]
    assert all(f"{rate:.4f}" in out for rate in [*figures, report["unbounded_hit_rate"]])
    assert "hits, S3-FIFO" in out and "round robin" in out and "divided by the mean" in " ".join(out.split())


def test_without_a_trace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cache, "CONVERSATIONS", 10)
    assert main(["bench", "cache", "--json", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["trace"]["requests"] == len(conversations(10))
    assert "no TRACE" in err


def exit_code(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as ended:  # argparse's own check
        return ended.code


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.jsonl"], 3, "missing.jsonl cannot be read"),
        (["."], 3, "hash_ids"),
        (["a.jsonl", "b.jsonl"], 2, "one trace and no model, not 'a.jsonl' and 'b.jsonl'"),
        (["--model", "storyteller-1m"], 2, "one trace and no model"),
        (["--cache-blocks", "0"], 2, "--cache-blocks must be at least 1"),
        (["--node-blocks", "-1"], 2, "--node-blocks must be at least 1"),
        (["--nodes", "0"], 2, "--nodes must be at least 1"),
        (["--nodes", "10", "1000000000"], 2, "--nodes must be at most 10000"),
        (["--nodes", "x"], 2, "--nodes"),
    ],
)
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert exit_code(["bench", "cache", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_a_damaged_trace(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    lines = Path(trace).read_text(encoding="utf-8").splitlines()
    lines[6] = lines[6].replace("[", "[-1, ")
    Path(trace).write_text("\n".join(lines), encoding="utf-8")
    assert main(["bench", "cache", trace, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "line 7: an id of hash_ids must be" in err and err.count("\n") == 1
