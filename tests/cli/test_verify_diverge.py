"""`minillm verify diverge A B`: the report, the re-run, and files that are no records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from minillm import SamplingParams
from minillm.cli.main import main
from minillm.cli.parser import DIFFERENT

PROMPTS = [[5, 6, 7, 8], list(range(2, 50))]
PARAMS = SamplingParams(max_tokens=5, temperature=0.5, seed=3, ignore_eos=True)


def record(folder: Path, path: Path, **options: Any) -> Path:
    tiny.load(folder, diverge_record=path, **options).generate(PROMPTS, PARAMS)
    return path


def diverge(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = main(["verify", "diverge", *map(str, words), "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, report


def test_the_same_and_another_backend(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = record(folder, tmp_path / "a", backend="native")
    b = record(folder, tmp_path / "b", backend="native", prefill_chunk=7, draft_model="ngram")
    c = record(folder, tmp_path / "c", backend="reference")
    assert diverge(capsys, a, b) == (
        0,
        {
            "files": [str(a), str(b)],
            "same": True,
            "steps": 10,
            "requests": 2,
            "only": [0, 0],
            "more_steps": [0, 0],
            "incomplete": [False, False],
        },
    )
    code, report = diverge(capsys, a, c, "--model", folder)
    first = report["first_difference"]
    assert (code, first["kind"], first["near_tie"]) == (DIFFERENT, "arithmetic", False)
    assert report["repeats"][0] and report["origin"]["place"]["op"] and report["origin"]["differing"] > 0
    assert main(["verify", "diverge", str(a), str(c)]) == DIFFERENT
    assert "give --model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "other", "op"),
    [
        ({"kv_dtype": "int8"}, {}, "rope_and_cache"),
        (
            {"kv_dtype": "int8", "backend": "reference"},
            {"kv_dtype": "fp8", "backend": "reference"},
            "rope_and_cache",
        ),
        ({"quantization": "int8"}, {}, "embedding"),
        ({"quantization": "w8a8", "kv_dtype": "int8"}, {"quantization": "int8"}, "linear"),
        ({"quantization": "int4-g64"}, {"quantization": "int4"}, "linear"),
    ],
)
def test_numbers_stored_in_other_ways(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], own: Any, other: Any, op: str
) -> None:
    """Each side is run again with its own forms: it repeats its record, and the origin is found."""
    a, b = record(folder, tmp_path / "a", **own), record(folder, tmp_path / "b", **other)
    code, report = diverge(capsys, a, b, "--model", folder)
    assert (code, report["first_difference"]["kind"]) == (DIFFERENT, "arithmetic")
    assert report["repeats"] == [True, True] or own.get("backend") == "reference"  # not the same in a batch
    assert report["origin"]["place"]["op"] == op
    assert main(["verify", "diverge", str(a), str(b), "--model", str(folder)]) == DIFFERENT
    printed = capsys.readouterr().out
    assert ("keys and values in int8" in printed) == ("kv_dtype" in own)
    assert ("A and B store other numbers there" in printed) == (other == {} and op != "embedding")


def test_forms_that_no_scheme_gives_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, c = record(folder, tmp_path / "a", quantization="int8"), record(folder, tmp_path / "c")
    lines = a.read_text().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["envelope"]["components"]["quantization"] = "00"
    a.write_text("".join([json.dumps(header) + "\n", *lines[1:]]))
    assert main(["verify", "diverge", str(a), str(c), "--model", str(folder)]) == 2
    assert "matrices in other forms" in capsys.readouterr().err


@pytest.mark.parametrize("shorter", ["a", "b"])
def test_a_record_that_ends_earlier_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shorter: str
) -> None:
    """Without a word a run that was killed would look like one that did the same."""
    a, b = record(folder, tmp_path / "a"), record(folder, tmp_path / "b")
    cut = a if shorter == "a" else b
    lines = cut.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:-4]))
    code, found = diverge(capsys, a, b)
    assert code == 0 and found["same"] and found["steps"] + 4 == 10
    assert found["more_steps"] == ([0, 4] if shorter == "a" else [4, 0])
    main(["verify", "diverge", str(a), str(b)])
    printed = capsys.readouterr().out
    assert f"4 more steps of these requests are only in {'B' if shorter == 'a' else 'A'}" in printed
    assert "no difference in the steps that both have" in printed


def test_another_model_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, c = (record(folder, tmp_path / name, backend=name) for name in ("native", "reference"))
    other = tiny.make_folder(tmp_path / "other", tensors=tiny.weights(tiny.config(), seed=1))
    assert main(["verify", "diverge", str(a), str(c), "--model", str(other)]) == 2
    assert "other weights" in capsys.readouterr().err
    text = a.read_text().replace('"backend":"native"', '"backend":"abacus"')
    (tmp_path / "abacus").write_text(text)
    assert main(["verify", "diverge", str(tmp_path / "abacus"), str(c), "--model", str(folder)]) == 2
    assert "abacus" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "folder", "junk"])
def test_what_is_no_record_is_one_line(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "junk":
        path.write_bytes(b"\x00\xff" * 5000)
    assert main(["verify", "diverge", str(path), str(path)]) == (2 if kind == "junk" else 3)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "diverge_record" in err
