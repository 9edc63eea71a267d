"""`minillm verify [MODEL]`: what holds, what does not, and controls that must fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minillm.cli.main import main
from minillm.cli.parser import DIFFERENT
from minillm.verify import prove
from minillm.verify.weakened import WeakenedOps

QUICK = ["--guarantee", "G1", "--device", "cpu", "--dtype", "float32", "--json"]


def verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["verify", *words])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, report


def test_native_holds_and_every_control_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = verify(
        capsys,
        "--model",
        str(folder),
        "--backend",
        "native",
        "--dtype",
        "float32",
        "--json",
        "--seconds",
        "600",
    )
    found = {proof["level"]: proof for proof in report["guarantees"]}
    assert (code, report["all_held"], report["promised"]) == (0, True, "G3")
    assert list(found) == ["G0", "G1", "G2", "G3"]
    for proof in found.values():
        assert proof["held"] and proof["control_failed"] and proof["count"]["rows"] >= 90
        assert len(proof["worlds"]) == proof["planned"]
    assert "another process" in found["G3"]["worlds"] and len(found["G2"]["worlds"]) == 10


def test_the_reference_does_not_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = verify(capsys, str(folder), "--backend", "reference", *QUICK)
    g1 = report["guarantees"][1]
    assert (code, report["all_held"], report["promised"]) == (DIFFERENT, False, "G4")
    assert g1["count"]["differing"] > 0 and not g1["promised"] and "request" in g1["count"]["first"]


def test_a_control_that_does_not_fail_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove, "weakened", lambda model, fault: model)
    code = main(["verify", str(folder), "--backend", "native", *QUICK[:-1]])
    out = capsys.readouterr().out
    assert code == DIFFERENT and out.count("NOT NOTICED") == 2 and "G1 any batch" in out
    assert hasattr(WeakenedOps, "linear")


def test_time_that_is_over_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = verify(capsys, str(folder), "--json", "--seconds", "0.001")
    assert code == DIFFERENT and all("time was over" in proof["note"] for proof in report["guarantees"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["no-such-model"], 3),
        (["a", "b"], 2),
        (["--seconds", "0"], 2),
        (["--seconds", "nan"], 2),
        (["--num-draft-tokens", "3"], 2),
    ],
    ids=str,
)
def test_bad_words_are_one_line(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *words]) == code
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_words_that_argparse_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--guarantee", "g2"], ["--bakcend", "native"], ["same", "a"], ["diverge", "a"]):
        with pytest.raises(SystemExit) as ended:
            main(["verify", *words])
        assert ended.value.code == 2
    assert "did you mean --backend" in capsys.readouterr().err
