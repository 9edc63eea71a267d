"""The files of a model as an enemy wrote them: a model loads, or one typed line says why not.

Any JSON value at any key, sizes beyond any memory, folders, pipes and links in place of files, files that
vanish or shrink while they are read. Nothing hangs, nothing raises anything else, nothing is allocated before
its size is compared with the memory.
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hostile
import pytest
import tiny
import torch
from hostile import use, wrong_outcome

from minillm import MinillmError, SamplingParams
from minillm.config import EngineConfig, files
from minillm.engine.engine import Engine
from minillm.errors import (
    KVCapacityError,
    ModelNotFound,
    OutOfMemory,
    UnreadableFile,
    UnsupportedModel,
    WeightsError,
)
from minillm.memory import kv_cache
from minillm.model import checkpoint
from minillm.model.checkpoint import stored_tensors
from minillm.model.config_keys import ONLY_AT, UNSUPPORTED
from minillm.model.families import FAMILIES, load_model_config, parse_config
from minillm.model.loader import load_model
from minillm.model.locate import find_model
from minillm.model.memory import require_memory
from minillm.model.rope import rope_tables
from minillm.model.rope_config import require_finite_angles

ENGINE = EngineConfig(device="cpu", dtype="float32", backend="reference", max_model_len=32)


# ---- config.json: every key, every value -----------------------------------------------------------

CONFIGS = {
    name: tiny.config_of(name) | ({} if name in ("gpt2", "phi3") else {"rope_scaling": hostile.YARN})
    for name in FAMILIES
}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    hostile.YARN | {"attention_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    hostile.YARN | {"beta_fast": 32, "beta_slow": 1, "truncate": False, "mscale": 1.0, "mscale_all_dim": 0.5},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
     "original_max_position_embeddings": 64, "factor": 2.0, "attention_factor": 1.5},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
]  # fmt: skip


def parse_and_estimate(raw: dict[str, Any]) -> None:
    config = parse_config(json.loads(json.dumps(raw)))
    require_memory(config, torch.float32, torch.device("cpu"), config.max_position_embeddings)


@pytest.mark.parametrize("family", CONFIGS)
def test_any_value_at_any_key(family: str) -> None:
    raw = CONFIGS[family]
    keys = {*raw, *FAMILIES[family].reads, *ONLY_AT, "head_dim", "layer_types", "rope_theta", "dtype"}
    keys |= FAMILIES[family].aliases.keys() | FAMILIES[family].unused
    keys |= {"bos_token_id", "rope_parameters", "no_such_key", "unk_token_id", *UNSUPPORTED}
    wrong = []
    for key in sorted(keys):
        for value in hostile.VALUES:
            reason = wrong_outcome(lambda key=key, value=value: parse_and_estimate(raw | {key: value}))
            wrong += [f"{key}={str(value)[:30]!r} {reason}"] if reason else []
    assert wrong == []


def make_tables(raw: dict[str, Any]) -> None:
    config = parse_config(json.loads(json.dumps(raw)))
    for rope in config.ropes:
        require_finite_angles(rope, config.head_dim, 32)
        assert all(table.isfinite().all() for table in rope_tables(rope, config.head_dim, 32))


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_any_value_at_any_key_of_rope(rope: dict[str, Any]) -> None:
    """What a parameter means is found out when the tables are made."""
    make_tables(tiny.config(rope_scaling=rope))
    wrong = []
    for key in (*rope, "rope_theta", "extra"):
        for value in hostile.VALUES:
            cfg = tiny.config(rope_scaling=rope | {key: value})
            reason = wrong_outcome(partial(make_tables, cfg))
            wrong += [f"{key}={str(value)[:30]!r} {reason}"] if reason else []
    assert wrong == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": [[]]}, "architecture"),
        ({"architectures": [{"a": 1}]}, "architecture"),
        ({"architectures": ["a\nb"]}, "architecture"),
        ({"architectures": [], "model_type": []}, "model_type"),
        ({"model_type": {}}, "model_type"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers"),
        ({"hidden_size": 10**400}, "hidden_size"),
        ({"vocab_size": -(10**400)}, "vocab_size"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rms_norm_eps": 1e-320}, "rms_norm_eps"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"eos_token_id": [10**400]}, "eos_token_id"),
        ({"rope_scaling": hostile.YARN | {"factor": 1e300}}, "factor"),
        ({"rope_scaling": hostile.YARN | {"factor": 1e-300}}, "factor"),
        ({"rope_scaling": hostile.YARN | {"beta_fast": 1e300}}, "beta_fast"),
        ({"rope_scaling": hostile.YARN | {"beta_slow": []}}, "beta_slow"),
        ({"rope_scaling": hostile.YARN | {"attention_factor": 1e300}}, "attention_factor"),
        ({"rope_scaling": hostile.YARN | {"mscale": []}}, "mscale"),
        ({"rope_scaling": hostile.YARN | {"original_max_position_embeddings": 10**400}}, "original_max"),
        ({"rope_scaling": {"rope_type": []}}, "rope kind"),
        (
            {"head_dim": 64, "rope_theta": 1e-20, "rope_scaling": {"type": "linear", "factor": 1e-20}},
            "rope_theta",
        ),
        ({"layer_types": [[]] * 2}, "layer_types"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folder = tiny.make_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps(tiny.config(**changes)))
    with pytest.raises(UnsupportedModel, match=named) as caught:
        load_model(folder, ENGINE)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("window", [2**63, 2**64, 2**31, 0, -1, 1.5, True])
def test_windows_beyond_the_kernels(tmp_path: Path, window: Any) -> None:
    folder = tiny.make_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps(tiny.mistral_config(window)))
    with pytest.raises(UnsupportedModel, match="sliding_window"):
        load_model(folder, ENGINE)
    (folder / "config.json").write_text(json.dumps(tiny.mistral_config(2**31 - 1)))  # control
    tiny.load(folder).generate([5, 6], SamplingParams(max_tokens=2))


def test_two_values_for_one_key(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path)
    text = json.dumps(tiny.config())
    (folder / "config.json").write_text(text[:-1] + ', "hidden_size": 64}')
    with pytest.raises(UnsupportedModel, match="two values for 'hidden_size'"):
        load_model_config(folder)
    (folder / "config.json").write_text(text[:-1] + ', "hidden_size": 32}')
    assert load_model_config(folder).hidden_size == 32, "the same value twice is no contradiction"


# ---- sizes before memory ----------------------------------------------------------------------------

UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from minillm import LLM, MinillmError
LLM(Path(sys.argv[3]), device="cpu", backend="reference", kv_memory="1MiB").generate("a")  # its threads
used = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")) * 1024
spare = 512 << 20
resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
try:
    LLM(Path(sys.argv[1]), device="cpu", backend="reference", **eval(sys.argv[2]))
    print("loaded")
except MinillmError as error:
    print(type(error).__name__, error)
"""


def under_a_limit(folder: Path, **options: Any) -> str:
    sound = tiny.make_folder(folder / "sound")
    command = [sys.executable, "-c", UNDER_A_LIMIT, str(folder), repr(options), str(sound)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")


@LINUX
@pytest.mark.parametrize(
    ("changes", "options", "kind"),
    [
        ({"num_hidden_layers": 10**9}, {}, "UnsupportedModel"),
        (
            {"num_hidden_layers": 4096, "hidden_size": 1 << 20, "intermediate_size": 1 << 20},
            {},
            "OutOfMemory",
        ),
        ({"vocab_size": 10**12}, {}, "OutOfMemory"),
        ({"max_position_embeddings": 10**12}, {}, "OutOfMemory"),
        ({"head_dim": 2**40}, {}, "OutOfMemory"),
        ({"vocab_size": 10_000_000}, {}, "OutOfMemory"),  # 2.4 GiB: free, and refused by the limit
        ({}, {"kv_memory": "1GiB"}, "KVCapacityError"),
        ({}, {}, "loaded"),
    ],
    ids=str,
)
def test_memory_is_not_taken_before_it_is_counted(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], kind: str
) -> None:
    """With half a GiB to spare; the refusals hold an estimate."""
    folder = tiny.make_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps(tiny.config(**changes)))
    said = under_a_limit(folder, **({"kv_memory": "1MiB"} | options))
    assert said.startswith(kind), said
    assert kind not in ("OutOfMemory", "KVCapacityError") or "iB" in said


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_kv_cache_that_the_system_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise error

    model, config = load_model(folder, ENGINE), EngineConfig(kv_memory="1MiB")
    Engine(model, config)  # the control
    monkeypatch.setattr(kv_cache.torch, "empty", refuse)
    with pytest.raises(KVCapacityError, match=r"KV blocks need 1\.0 MiB") as caught:
        Engine(model, config)
    assert isinstance(caught.value, OutOfMemory) and caught.value.hint


# ---- files that are none ---------------------------------------------------------------------------


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)  # who opens it waits for a writer


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("gone")


def a_link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_terabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


KINDS = [a_folder, a_pipe, a_socket, a_link_to_itself, a_link_to_nowhere, a_link_to_zeros, a_terabyte]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", [n for n in hostile.FILES if n != "special_tokens_map.json"])
def test_something_else_in_place_of_a_file(tmp_path: Path, name: str, kind: Callable[[Path], None]) -> None:
    """It is named, and not called damaged: no download will help."""
    folder = hostile.make(tmp_path / "model")
    (folder / name).unlink()
    kind(folder / name)
    with pytest.raises(MinillmError) as caught:
        use(folder)
    if not (kind is a_terabyte and name.endswith(".safetensors")):  # a file like another, but damaged
        assert type(caught.value) is UnreadableFile and caught.value.exit_code == 3
        assert "damaged" not in str(caught.value) and "download" not in str(caught.value)
    assert name in str(caught.value)


REFUSALS = [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE]


@pytest.mark.parametrize("number", REFUSALS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("name", [n for n in hostile.FILES if n != "special_tokens_map.json"])
def test_a_file_that_the_system_refuses(
    tmp_path: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, own = hostile.make(tmp_path / "model"), builtins.open

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return own(path, *args, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(UnreadableFile, match=os.strerror(number)) as caught:
        use(folder)
    assert name in str(caught.value) and "damaged" not in str(caught.value)


@pytest.mark.skipif(not os.getuid(), reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    for name in hostile.FILES:
        folder = hostile.make(tmp_path / name)
        (folder / name).chmod(0)
        with pytest.raises(UnreadableFile, match=name):
            use(folder)


class Failing:
    """A file whose reads fail from the n-th on."""

    def __init__(self, file: Any, count: int) -> None:
        self._file, self._left = file, count

    def readinto(self, buffer: Any) -> int:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._file.readinto(buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_read_that_fails_is_no_damage(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reads = tiny.make_folder(tmp_path), [0]

    def open_file(path: Path) -> Any:
        reads[0] += 1
        return Failing(files.open_file(path), 0 if reads[0] > count + 1 else 1)

    monkeypatch.setattr(checkpoint, "open_file", open_file)
    with pytest.raises(UnreadableFile, match=os.strerror(errno.EIO)) as caught:
        tiny.load(folder)
    assert "damaged" not in str(caught.value)


# ---- files that change while they are read -----------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["deleted", "truncated", "emptied", "replaced by a folder", "unreadable link"]
)
@pytest.mark.parametrize("at", [1, 2, 7])
def test_a_file_that_changes_while_loading(tmp_path: Path, how: str, at: int) -> None:
    """It is never mapped, so a file that shrinks is an error and no SIGBUS."""
    folder, seen = tiny.make_folder(tmp_path), [0]
    path = folder / "model.safetensors"

    def change(done: int, total: int) -> None:
        seen[0] += 1
        if seen[0] != at:
            return
        if how in ("truncated", "emptied"):
            os.truncate(path, 0 if how == "emptied" else 300)
            return
        path.unlink()
        if how == "replaced by a folder":
            path.mkdir()
        elif how == "unreadable link":
            path.symlink_to(path.name)

    with pytest.raises((UnreadableFile, WeightsError), match=r"model\.safetensors"):
        load_model(folder, ENGINE, progress=change)
    assert seen[0] == at


# ---- names and links ---------------------------------------------------------------------------------


def with_shard_name(folder: Path, name: str) -> Path:
    hostile.make(folder)
    index = json.loads((folder / hostile.INDEX).read_text())
    index["weight_map"] = {tensor: name for tensor in index["weight_map"]}
    (folder / hostile.INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../part-0.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "./part-0.safetensors",
     "part-0.safetensors/", "a/../part-0.safetensors", "x\0y", "~/x", "x" * 300, "x" * 70_000, "\ud800",
     "a\nb", "\x1b[31m"],
    ids=lambda name: repr(name)[:20],
)  # fmt: skip
def test_names_of_shards(tmp_path: Path, name: str) -> None:
    folder = with_shard_name(tmp_path / "model", name)
    with pytest.raises((WeightsError, UnreadableFile)) as caught:
        stored_tensors(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_links_are_followed_out_of_the_folder(tmp_path: Path) -> None:
    """A snapshot in the Hugging Face cache consists of links to ../../blobs."""
    folder, blobs = hostile.make(tmp_path / "model"), tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / "blobs" / str(number))
    use(folder)


def test_a_link_gives_away_nothing_of_what_it_leads_to(tmp_path: Path) -> None:
    folder, secret = hostile.make(tmp_path / "model"), tmp_path / "secret"
    secret.write_text("the password is swordfish " * 99)
    for name in hostile.JSON_FILES:
        if name == "special_tokens_map.json":  # which is not read
            continue
        (folder / name).rename(folder / "kept")
        (folder / name).symlink_to(secret)
        with pytest.raises(MinillmError) as caught:
            use(folder)
        assert "swordfish" not in str(caught.value)
        (folder / "kept").replace(folder / name)


def test_folders_that_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for name in (loop, loop / "model", tmp_path / ("x" * 300), tmp_path / "\ud800"):
        with pytest.raises(ModelNotFound):
            find_model(name)

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    folder = hostile.make(tmp_path / "model")
    monkeypatch.setattr(files.os, "lstat", refuse)
    with pytest.raises(UnreadableFile):
        load_model_config(folder)


# ---- the fuzz ------------------------------------------------------------------------------------------


def fuzz(folder: Path, seeds: range) -> list[str]:
    """Wrong outcomes, each with the seed that makes it again."""
    sound, wrong = hostile.make(folder / "sound"), []
    use(sound)  # the control
    for seed in seeds:
        chance, victim = random.Random(seed), folder / "victim"
        shutil.copytree(sound, victim)
        name = hostile.FILES[seed % len(hostile.FILES)]
        hostile.tamper(victim / name, chance)
        reason = wrong_outcome(partial(use, victim))
        wrong += [f"seed {seed}, {name}: {reason}"] if reason else []
        shutil.rmtree(victim)
    return wrong


def test_tampered_files_are_typed_errors(tmp_path: Path) -> None:
    assert fuzz(tmp_path, range(96)) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_tampered_files_are_typed_errors_at_length(tmp_path: Path, part: int) -> None:
    assert fuzz(tmp_path, range(1000 * (part + 1), 1000 * (part + 2))) == []


def test_the_fuzz_notices_what_is_untyped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with plain reads in place of the checked ones there is much to see."""

    def plain(path: Path, damaged: Any) -> Any:
        return json.loads(path.read_text())

    monkeypatch.setattr("minillm.model.families.reader.read_object", plain)
    monkeypatch.setattr("minillm.model.generation.read_object", plain)
    assert fuzz(tmp_path, range(80)) != []
