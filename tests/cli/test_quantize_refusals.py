"""`minillm quantize`: what it refuses, and what an interruption leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import families
import pytest
import tiny
import torch
from quantizing import SMALL, make_model, refused, rounded, run, shorten, write_story
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.cli.main import main
from minillm.model.compress import folder as folders
from minillm.model.compress import layers
from minillm.model.compress.grid import Grid, Rounded


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path)


@pytest.fixture
def story(tmp_path: Path) -> str:
    return write_story(tmp_path)


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("--scheme", "w4"), 2, "no scheme 'w4'"),
        ((), 2, "--scheme"),
        (("--scheme", "w4a16", "--group", "16"), 2, "no group '16'"),
        (("--scheme", "w4a16"), 2, "self_attn.q_proj has 32 inputs"),  # groups of 64
        (("--scheme", "w8a16", "--asymmetric"), 2, "symmetric"),
        (("--scheme", "w8a16", "--ignore", "up"), 2, "no quantised matrix is called 'up'"),
        (("--scheme", "w8a16", "--ignore", "up_proj"), 2, "gate_proj, up_proj are one matrix"),
        (("--scheme", "w8a16", "--calibrate", "nowhere.txt"), 3, "No such file"),
        (("--scheme", "w8a16", "--calibrate", "short.txt"), 2, "too short"),
        (("--scheme", "w8a16", "--evaluate", "short.txt"), 2, "too short"),
        (("--scheme", "w8a16", "--calibrate", "latin.txt"), 2, "not UTF-8"),
        (("--scheme", "w8a16", "--calibrate", "empty.txt"), 2, "empty.txt is empty"),
    ],
    ids=str,
)
def test_what_is_refused(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    named: str,
) -> None:
    monkeypatch.chdir(model.parent)
    Path("short.txt").write_text("the cat sat")
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("na\u00efve".encode("latin-1"))
    found, line = refused(capsys, model, "small", *words)
    assert found == code and named in line
    assert sorted(path.name for path in model.parent.iterdir()) == [
        "empty.txt",
        "latin.txt",
        "model",
        "short.txt",
    ]


def test_a_folder_that_exists_is_kept(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(capsys, model, model, "--scheme", "w8a16")
    assert code == 2 and "exists" in line and (model / "model.safetensors").exists()


def test_where_no_folder_can_appear(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the model is loaded: the work would be lost at the end."""
    (model.parent / "empty").mkdir()
    (model.parent / "link").symlink_to(model.parent / "empty")
    (model.parent / "file").touch()
    monkeypatch.setattr(folders, "load_model", lambda *_, **__: 1 / 0)
    for out, code, named in (("link", 2, "exists"), ("file/small", 3, "Not a directory")):
        found, line = refused(capsys, model, model.parent / out, "--scheme", "w8a16")
        assert found == code and named in line, line


def damaged(model: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    weights = load_file(model / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, model / "model.safetensors")


@pytest.mark.parametrize("from_a_file", [True, False])
def test_logits_that_are_no_numbers(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], from_a_file: bool
) -> None:
    damaged(model, "model.norm.weight", lambda norm: torch.full_like(norm, float("nan")))
    words = ["--evaluate", story] if from_a_file else []
    code, line = refused(capsys, model, model.parent / "small", "--scheme", "w8a16", *words)
    assert code == 5 and "logits are NaN or infinite" in line and not (model.parent / "small").exists()


def test_a_perplexity_beyond_all_numbers(model: Path, story: str, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(model, "lm_head.weight", lambda head: head * 1e4)
    report = run(capsys, model, model.parent / "small", "--scheme", "w8a16", "--evaluate", story)
    assert report["perplexity"] is None and report["original_perplexity"] is None


def test_a_beginning_that_the_model_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = SMALL | {"bos_token_id": 5000}
    source = tiny.make_folder(tmp_path / "model", cfg, tensors=rounded(cfg))
    (source / "tokenizer.json").unlink()
    assert run(capsys, source, tmp_path / "small", "--scheme", "w8a16")["perplexity"] > 1


def test_a_context_of_one_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = SMALL | {"max_position_embeddings": 1}
    source = tiny.make_folder(tmp_path / "model", cfg, tensors=rounded(cfg))
    code, line = refused(capsys, source, tmp_path / "small", "--scheme", "w8a16")
    assert code == 2 and "predicts nothing" in line


def test_what_the_cache_says_of_the_source_is_not_copied(
    model: Path, story: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "source.json").write_text("{}")
    run(capsys, model, model.parent / "small", "--scheme", "w8a16", "--evaluate", story)
    assert not (model.parent / "small" / "source.json").exists()
    assert (model.parent / "small" / "tokenizer.json").exists()


def test_a_quantised_model(model: Path, story: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, model, model.parent / "a", "--scheme", "w8a16", "--evaluate", story)
    code, line = refused(capsys, model.parent / "a", model.parent / "b", "--scheme", "w8a16")
    assert code == 4 and "quantised already" in line and not (model.parent / "b").exists()


def test_matrices_that_are_stored_transposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = families.make_folder(tmp_path / "gpt2", "gpt2")
    code, line = refused(capsys, source, tmp_path / "small", "--scheme", "w8a16")
    assert code == 4 and "gpt2" in line and "transposed" in line


@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_that_are_no_numbers(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], calibrated: bool
) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(weights, model / "model.safetensors")
    words = ["--calibrate" if calibrated else "--evaluate", story]
    code, line = refused(capsys, model, model.parent / "small", "--scheme", "w8a16", *words)
    assert code == 5 and "model.layers.1.mlp.down_proj cannot be quantised" in line
    assert sorted(path.name for path in model.parent.iterdir()) == ["model", "story.txt"]


@pytest.mark.parametrize("call", [10, 15])  # of 14: in the second layer, and the control
def test_an_interrupted_command_leaves_nothing(
    model: Path, story: str, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls: list[str] = []

    def interrupted(weights: Tensor, grid: Grid, name: str) -> Rounded:
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(weights, grid, name)

    original = layers.round_to_nearest
    monkeypatch.setattr(layers, "round_to_nearest", interrupted)
    code = main(
        ["quantize", str(model), str(model.parent / "small"), "--scheme", "w8a16", "--evaluate", story]
    )
    left = sorted(path.name for path in model.parent.iterdir())
    assert (code, left) == (
        (130, ["model", "story.txt"]) if call == 10 else (0, ["model", "small", "story.txt"])
    )
