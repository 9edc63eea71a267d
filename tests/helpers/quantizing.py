"""`minillm quantize` on the tiny model: short windows, what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import Tensor

from minillm.cli.main import main
from minillm.model.compress import folder as folders
from minillm.model.compress import text

WORDS = "once upon a time there was a cat and the cat sat on the mat until the end "
SMALL = tiny.config(torch_dtype="bfloat16")


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 32 tokens, and few of them."""
    monkeypatch.setattr(folders, "LENGTH", 32)
    monkeypatch.setattr(text, "_CALIBRATION", 6)
    monkeypatch.setattr(text, "_EVALUATION", 3)


def make_model(folder: Path) -> Path:
    """A model folder in bfloat16."""
    return tiny.make_folder(folder / "model", SMALL, tensors=rounded(SMALL))


def write_story(folder: Path) -> str:
    """A text that is long enough; its path."""
    path = folder / "story.txt"
    path.write_text(WORDS * 40)
    return str(path)


def rounded(cfg: dict[str, Any]) -> dict[str, Tensor]:
    """Weights in bfloat16."""
    return {name: tensor.bfloat16() for name, tensor in tiny.weights(cfg).items()}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The object that a successful command prints."""
    assert main(["quantize", *map(str, words), "--json"]) == 0
    out, _ = capsys.readouterr()
    found: dict[str, Any] = json.loads(out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and the one line of a command that fails."""
    try:
        code = main(["quantize", *map(str, words)])
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minillm: ") and err.count("\n") == 1, err
    return code, err
