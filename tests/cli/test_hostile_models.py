"""Bad names, files, folders and caches given to pull, convert, list, rm, inspect, generate and chat.

Each is refused with one line and an exit code of docs/usage.md, and leaves nothing behind.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ggufs
import pytest

from minillm.cli.main import main

pytest.importorskip("gguf", reason="the library gguf is not installed: pip install gguf")

NAMES = ["", ".", "..", "/", "../models", "a\0b", "é\u202e", "\ud800", "x" * 5000, "~nouser", "lock",
         "smollm2/", "*", "https://huggingface.co/a/b", "/dev/null", "pipe", "dangling", "loop", "empty",
         "cut.gguf"]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an empty cache, a good file and some bad ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    content = ggufs.whole(*ggufs.model("llama_tied"))
    Path("good.gguf").write_bytes(content)
    Path("cut.gguf").write_bytes(content[:100])
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full", "file").touch()
    os.mkfifo("pipe")
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one line of a command that is refused, and short enough to be read."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
        try:
            code = main([*words])
        except SystemExit as error:  # argparse
            code = int(str(error.code))
        out, err = capsys.readouterr()
        assert code in (2, 3, 4, 5, 6), (words, code, err)
        is_one_line = err.startswith("minillm: ") and err.count("\n") == 1 and len(err) < 1000
        assert out == "" and is_one_line, err[:1000]
        return err

    return run


@pytest.mark.parametrize("name", NAMES, ids=[repr(name)[:12] for name in NAMES])
def test_a_name_that_is_no_model(place: Path, refused: Callable[..., str], name: str) -> None:
    for words in (["pull"], ["rm", "-y"]):
        refused(*words, "--", name)
    for words in (["inspect"], ["generate", "-p", "x"], ["chat"], ["generate", "-p", "x", "--draft-model"]):
        refused(*words, name if words[-1] == "--draft-model" else f"--model={name}")
    assert not (place / "cache" / "models").exists() or os.listdir(place / "cache" / "models") == ["lock"]


@pytest.mark.parametrize("name", ["", ".", "..", "full", "full/file", "full/file/x", "loop", "loop/x",
                                  "dangling", "good.gguf", "a\0b", "\ud800", "x" * 300, "x" * 300 + "/y",
                                  "a\0b/y", "/proc/x", "/dev/null/x"])  # fmt: skip
def test_a_name_that_is_no_new_folder(place: Path, refused: Callable[..., str], name: str) -> None:
    before = sorted(place.rglob("*"))
    refused("convert", "--", "good.gguf", name)
    refused("convert", "--tokenizer-only", "--", "good.gguf", name)
    assert sorted(place.rglob("*")) == before


def test_the_empty_folder_one_stands_in_is_no_new_folder(
    place: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "empty")
    assert "no name for a new folder" in refused("convert", "../good.gguf", ".")


@pytest.mark.parametrize("name", ["absent", "", "/", "pipe", "loop", "dangling", "empty", "cut.gguf", "a\0b",
                                  "\ud800", "x" * 5000, "/dev/null", "/dev/zero"])  # fmt: skip
def test_a_name_that_is_no_file(place: Path, refused: Callable[..., str], name: str) -> None:
    refused("convert", "--", name, "out")
    refused("pull", "smollm2", f"--from={name}")
    if name not in (
        "cut.gguf",
        "/dev/null",
        "/dev/zero",
        "pipe",
    ):  # a prompt may come from a device or a pipe
        refused("generate", f"--file={name}")
    assert not (place / "out").exists()


def test_arguments_out_of_range(place: Path, refused: Callable[..., str]) -> None:
    for number in (0, -1, 10**5, 10**30):
        assert "--threads" in refused("generate", "-p", "x", f"--threads={number}")


# ---- the cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["list"], ["pull", "smollm2"], ["generate", "-p", "x"], ["chat"]])
def test_a_cache_in_the_home_of_nobody(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("MINILLM_CACHE", "~nouser/x")
    assert "MINILLM_CACHE is '~nouser/x'" in refused(*command)


def model_of_the_cache(place: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["inspect", "good.gguf", "--context", "5"]) == 0
    capsys.readouterr()
    (folder,) = (path for path in (place / "cache" / "models").iterdir() if path.is_dir())
    return folder


DAMAGED: list[Any] = [
    b"", b"{}", b"[]", b"\xff", b"[" * 100_000, {"files": 5}, {"files": {"a": [10**400, "x"]}},
    b'{"source": {"origin": "x"}, "files": {"a": [1e400, "x"]}}', {"files": {"a": [-1, "x"]}},
    {"files": {"a": [True, 5]}}, {"files": {"a": 5}}, {"files": {"../a": [1, "x"]}}, {"format": "x"},
    {"source": {"origin": 5}}, {"source": {"origin": "x", "license": None}}, {"source": {"more": "x"}},
    {"source": None}, None,
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_note_of_a_model(place: Path, capsys: pytest.CaptureFixture[str], content: Any) -> None:
    """It is listed as damaged, a number in it is no number to compute with, and rm removes it."""
    folder = model_of_the_cache(place, capsys)
    note = folder / "source.json"
    good = json.loads(note.read_text())
    note.unlink()
    if content is None:
        note.mkdir()
    else:
        note.write_bytes(content if isinstance(content, bytes) else json.dumps(good | content).encode())
    for words in (["list"], ["list", "--json"]):
        assert main(words) == 0 and "damaged: remove it" in capsys.readouterr().out
    assert main(["rm", "-y", folder.name]) == 0 and not folder.exists()


def test_rm_of_a_link_leaves_what_it_leads_to(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_of_the_cache(place, capsys)
    other = folder.rename(place / "big-disk")
    folder.symlink_to(other)
    assert main(["rm", "-y", folder.name]) == 0
    assert not folder.is_symlink() and (other / "source.json").exists()


def test_rm_looks_at_all_names_first(
    place: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    folder = model_of_the_cache(place, capsys)
    assert "'absent'" in refused("rm", "-y", folder.name, "absent") and folder.exists()
    assert main(["rm", "-y", folder.name, folder.name]) == 0 and not folder.exists()
