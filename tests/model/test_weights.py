"""Weights: damaged files are refused by name, valid ones load exactly, and peak memory is near their size."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from minillm import LLM
from minillm.errors import UnreadableFile, WeightsError
from minillm.model.checkpoint import stored_tensors
from minillm.model.placement import Placement
from minillm.model.weights import load_weights, placements

EMBED = "model.embed_tokens.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def refusal(folder: Path) -> str:
    """The message of a WeightsError: one line, with exit code 5."""
    with pytest.raises(WeightsError) as caught:
        tiny.load(folder)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sharded(folder: Path, weight_map: dict[str, Any] | None = None) -> dict[str, str]:
    """Split a folder's file into two shards and an index; returns the right weight map."""
    tiny.make_folder(folder)
    tensors = tiny.weights(tiny.config())
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    true_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}, folder / f"part-{i}.safetensors")
        true_map |= dict.fromkeys(part, f"part-{i}.safetensors")
    index = {"weight_map": true_map if weight_map is None else true_map | weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return true_map


# ---- damaged files --------------------------------------------------------------------------------


def truncated(data: bytes) -> bytes:
    return data[:-100]


def grown(data: bytes) -> bytes:
    return data + b"\0" * 100


def cut_in_header(data: bytes) -> bytes:
    return data[:50]


def empty(data: bytes) -> bytes:
    return b""


def only_a_length(data: bytes) -> bytes:
    return data[:8]


def header_longer_than_file(data: bytes) -> bytes:
    return struct.pack("<Q", len(data) + 1) + data[8:]


def absurd_header_length(data: bytes) -> bytes:
    return b"\xff" * 8 + data[8:]


def header_is_no_json(data: bytes) -> bytes:
    return data[:8] + b"#" + data[9:]


def header_is_no_object(data: bytes) -> bytes:
    return struct.pack("<Q", 8) + b"[1,2,3] "


def offsets_overlap(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[UP]["data_offsets"] = header[EMBED]["data_offsets"]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


DAMAGES = [truncated, grown, cut_in_header, empty, only_a_length, header_longer_than_file,
           absurd_header_length, header_is_no_json, header_is_no_object, offsets_overlap]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(tmp_path: Path, damage: Any) -> None:
    file = tiny.make_folder(tmp_path) / "model.safetensors"
    tiny.load(tmp_path)  # control: it was valid
    file.write_bytes(damage(file.read_bytes()))
    assert "model.safetensors" in refusal(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    tiny.make_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "only safetensors" in refusal(tmp_path)


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    file = tiny.make_folder(tmp_path) / "model.safetensors"
    stored = stored_tensors(tmp_path)
    assert sum(map(len, stored[UP].pieces())) == stored[UP].nbytes
    file.write_bytes(file.read_bytes()[: stored[UP].offset + 100])
    with pytest.raises(WeightsError, match="ends inside"):
        list(stored[UP].pieces())


# ---- shards ---------------------------------------------------------------------------------------


def test_shards_load_like_one_file(tmp_path: Path, folder: Path) -> None:
    sharded(tmp_path)
    assert torch.equal(tiny.load(tmp_path).logits([5, 6, 7]), tiny.load(folder).logits([5, 6, 7]))


def test_the_digest_does_not_depend_on_the_files(tmp_path: Path, folder: Path) -> None:
    """One file or shards, whatever the order of their index: the same model."""
    sharded(tmp_path)
    found = tiny.load(tmp_path).engine.model.weights_digest
    assert found == tiny.load(folder).engine.model.weights_digest
    path = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    path.write_text(json.dumps({"weight_map": dict(sorted(weight_map.items(), reverse=True))}))
    assert tiny.load(tmp_path).engine.model.weights_digest == found


def test_stray_files_beside_an_index_are_not_read(tmp_path: Path, folder: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "aaa.safetensors").write_bytes(b"no safetensors at all")
    assert torch.equal(tiny.load(tmp_path).logits([5, 6, 7]), tiny.load(folder).logits([5, 6, 7]))


@pytest.mark.parametrize("shards", ["stay", "are gone"])
def test_a_stale_index_beside_the_whole_file(
    tmp_path: Path, shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers reads model.safetensors where it is there; a save of several shards has none."""
    new = tiny.make_folder(tmp_path / "new", tensors=tiny.weights(tiny.config(), seed=9))
    sharded(tmp_path)
    if shards == "are gone":
        for path in tmp_path.glob("part-*.safetensors"):
            path.unlink()
    shutil.copy(new / "model.safetensors", tmp_path)
    assert torch.equal(tiny.load(tmp_path).logits([5, 6, 7]), tiny.load(new).logits([5, 6, 7]))
    assert "model.safetensors.index.json" in caplog.text


def test_a_tensor_in_two_shards(tmp_path: Path, folder: Path) -> None:
    """A copy is harmless; where two differ, nobody knows which one is meant."""
    sharded(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(shard for shard in index.values() if shard != index[UP])
    right, wrong = load_file(tmp_path / index[UP])[UP], load_file(tmp_path / other)
    for copy, is_right in ((right, True), (right.half(), False), (right + 1, False)):
        save_file(wrong | {UP: copy}, tmp_path / other)
        if is_right:
            assert torch.equal(tiny.load(tmp_path).logits([5, 6]), tiny.load(folder).logits([5, 6]))
        else:
            assert UP in refusal(tmp_path) and other in refusal(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, file: str) -> None:
    tiny.make_folder(tmp_path)
    (tmp_path / file).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 269060552\n"
    )
    with pytest.raises(UnreadableFile, match=f"{file} is a git-LFS pointer.*git lfs pull"):
        tiny.load(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "part-1.safetensors").unlink()
    assert "part-1.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": []}', '{"weight_map": {"a": 5}}',
                '{"weight_map": {"a": null}}', '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": {}}}']
)  # fmt: skip
def test_broken_index(tmp_path: Path, content: str) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "index.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../other.safetensors", "/etc/passwd", "sub/part.safetensors", "..", "", "."]
)
def test_index_may_not_leave_the_folder(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    sharded(folder, {EMBED: shard})
    save_file(tiny.weights(tiny.config()), tmp_path / "other.safetensors")  # a valid file outside
    assert "outside" in refusal(folder) or "missing shard" in refusal(folder)


def test_index_that_points_to_the_wrong_shard(tmp_path: Path) -> None:
    true_map = sharded(tmp_path)
    other = {"part-0.safetensors": "part-1.safetensors", "part-1.safetensors": "part-0.safetensors"}
    sharded(tmp_path, {EMBED: other[true_map[EMBED]]})
    assert EMBED in refusal(tmp_path)


def test_tensor_in_a_shard_but_not_in_the_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"model.layers.9.stray": torch.zeros(2)} | _shard(tmp_path, 0), tmp_path / "part-0.safetensors")
    assert "model.layers.9.stray" in refusal(tmp_path)


def _shard(folder: Path, i: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / f"part-{i}.safetensors")


# ---- accounting -----------------------------------------------------------------------------------


def test_everything_that_does_not_match_is_listed(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.config())
    del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.k_proj.weight"]
    tensors |= {"extra.one": torch.zeros(1), UP: torch.zeros(64, 31), EMBED: torch.zeros(300, 32)}
    message = refusal(tiny.make_folder(tmp_path, tensors=tensors))
    for part in ("2 missing", "model.norm.weight", "k_proj", "1 unexpected", "extra.one",
                 "2 of another shape", UP, "[64, 31]", "[64, 32]", EMBED):  # fmt: skip
        assert part in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    assert "and 12 more" in refusal(tiny.make_folder(tmp_path, tensors={EMBED: torch.zeros(320, 32)}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.uint8, torch.bool])
def test_other_dtypes_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = tiny.weights(tiny.config())
    tensors[UP] = tensors[UP].to(dtype)
    message = refusal(tiny.make_folder(tmp_path, tensors=tensors))
    assert UP in message and "BF16" in message


def test_tied_head(tmp_path: Path) -> None:
    cfg = tiny.config(tie_word_embeddings=True)
    tensors = tiny.weights(cfg)
    plain = tiny.load(tiny.make_folder(tmp_path / "plain", cfg, tensors=tensors)).logits([5, 6])
    copied = tensors | {"lm_head.weight": tensors[EMBED].clone()}
    assert torch.equal(
        tiny.load(tiny.make_folder(tmp_path / "copy", cfg, tensors=copied)).logits([5, 6]), plain
    )
    for head in (tensors[EMBED] + 1e-3, tensors[EMBED][:-1].clone()):
        other = tiny.make_folder(tmp_path / "other", cfg, tensors=tensors | {"lm_head.weight": head})
        assert "tie_word_embeddings" in refusal(other)


def test_a_tied_matrix_under_either_name(tmp_path: Path) -> None:
    cfg = tiny.config(tie_word_embeddings=True)
    tensors = {name: t.bfloat16() for name, t in tiny.weights(cfg).items()}
    plain = tiny.load(tiny.make_folder(tmp_path / "plain", cfg, tensors=tensors))
    rest = {name: t for name, t in tensors.items() if name != EMBED}
    for name, stored in {
        "head alone": rest | {"lm_head.weight": tensors[EMBED]},
        "head in another dtype": tensors | {"lm_head.weight": tensors[EMBED].float()},
        "embedding in another dtype": rest
        | {EMBED: tensors[EMBED].float(), "lm_head.weight": tensors[EMBED]},
    }.items():
        llm = tiny.load(tiny.make_folder(tmp_path / name, cfg, tensors=stored))
        assert torch.equal(llm.logits([5, 6]), plain.logits([5, 6])), name
    other = tensors | {"lm_head.weight": tensors[EMBED].float() + 1e-3}
    assert "tie_word_embeddings" in refusal(tiny.make_folder(tmp_path / "other", cfg, tensors=other))


def test_an_untied_model_needs_both(tmp_path: Path) -> None:
    for lost in (EMBED, "lm_head.weight"):
        tensors = {name: t for name, t in tiny.weights(tiny.config()).items() if name != lost}
        assert f"1 missing: {lost}" in refusal(tiny.make_folder(tmp_path / lost, tensors=tensors))


def test_names_without_the_prefix(tmp_path: Path, folder: Path) -> None:
    """What `save_pretrained` writes of the part without a head."""
    bare = {name.removeprefix("model."): t for name, t in tiny.weights(tiny.config()).items()}
    assert "layers.0.mlp.up_proj.weight" in bare and "lm_head.weight" in bare
    tiny.make_folder(tmp_path, tensors=bare)
    assert torch.equal(tiny.load(tmp_path).logits([5, 6]), tiny.load(folder).logits([5, 6]))


def test_old_rotary_buffers_are_ignored(tmp_path: Path, folder: Path) -> None:
    names = ["layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq", "rotary_emb.cos_cached"]
    buffers = {f"model.{name}": torch.ones(4) for name in names}
    tiny.make_folder(tmp_path, tensors=tiny.weights(tiny.config()) | buffers)
    assert torch.equal(tiny.load(tmp_path).logits([5, 6]), tiny.load(folder).logits([5, 6]))


# ---- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_values_land_exactly(tmp_path: Path, stored: torch.dtype, wanted: str) -> None:
    tensors = {name: t.to(stored) for name, t in tiny.weights(tiny.config()).items()}
    llm = tiny.load(tiny.make_folder(tmp_path, tensors=tensors), dtype=wanted, backend="reference")
    placed = placements(llm.engine.model.decoder)
    assert placed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(placed[name].view, tensor.to(getattr(torch, wanted))), name


@pytest.mark.parametrize("checkpoint", ["gpt2", "mixtral", "qwen3_moe_mlp_only", "gpt_oss", "phi3", "gemma3"])
def test_values_land_exactly_in_every_layout(checkpoint: str) -> None:
    """Transposed, fused, expert by expert, and gate and up in turns."""
    source = Path(__file__).parent / "families" / checkpoint
    llm = LLM(source, dtype="float32", device="cpu", backend="reference")
    placed, tensors = placements(llm.engine.model.decoder), load_file(source / "model.safetensors")
    assert placed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert placed[name].shape == tensor.shape
        assert torch.equal(placed[name].view.reshape(tensor.shape), tensor), name


def test_auto_dtype_is_the_checkpoints(tmp_path: Path) -> None:
    made = tiny.make_folder(tmp_path, tiny.config(torch_dtype="bfloat16"))
    assert tiny.load(made, dtype="auto").engine.model.dtype == torch.bfloat16


def test_progress_reaches_the_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("minillm.progress.Bar.__call__", lambda self, done, total: seen.append((done, total)))
    tiny.load(tiny.make_folder(tmp_path))
    total = sum(t.nbytes for t in tiny.weights(tiny.config()).values())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total) and {t for _, t in seen} == {total}


class Stub:
    """As much of a decoder as the loading of weights asks for."""

    config = SimpleNamespace(family="llama", multimodal=False, tie_word_embeddings=False)
    norm = SimpleNamespace(weight=torch.empty(1))

    def begin_quantized(self, *_: object) -> dict[int, object]:
        return {}


def digest(folder: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, torch.Tensor]) -> str:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    table = {name: Placement(torch.empty(t.shape), tuple(t.shape)) for name, t in tensors.items()}
    monkeypatch.setattr("minillm.model.weights.placements", lambda decoder: table)
    return load_weights(Stub(), folder)  # type: ignore[arg-type]


def test_the_digest_is_of_names_dtypes_shapes_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkpoints with the same bytes in the same order are two models."""
    a, b = torch.arange(6.0), torch.arange(6.0, 12.0)
    same = [{"a": a, "b": b}, {"b": b.clone(), "a": a.clone()}]
    others = [
        {"a": a, "c": b},
        {"a": a.view(2, 3), "b": b},
        {"a": a.view(3, 2), "b": b},
        {"a": a.view(torch.float16), "b": b},
        {"a": a.view(torch.bfloat16), "b": b},
        {"a": torch.cat([a, b[:3]]), "b": b[3:].clone()},
        {"a": a, "b": b + 1},
        {"a": b, "b": a},
        {"a": a, "b": b[:-1].clone()},
        {"a": torch.cat([a, b])},
    ]
    found = [digest(tmp_path / str(i), monkeypatch, tensors) for i, tensors in enumerate(same + others)]
    assert found[0] == found[1] and len(set(found)) == 1 + len(others)


# ---- memory ---------------------------------------------------------------------------------------

MEASURE = """
import sys, torch
from safetensors.torch import load_file
from pathlib import Path
from minillm.config import EngineConfig
from minillm.model.loader import load_model
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
def now():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) * 1024
how, small, big = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
engine = EngineConfig(device="cpu", dtype="float32")
load_model(small, engine)           # imports and first-use buffers do not count
base = now()
if how == "naive":
    state = load_file(big / "model.safetensors")
    copies = {name: tensor.clone() for name, tensor in state.items()}
else:
    model = load_model(big, engine)
print(peak() - base)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_near_the_weights(tmp_path: Path, folder: Path) -> None:
    cfg = tiny.config(hidden_size=1024, intermediate_size=2816, vocab_size=8192, num_hidden_layers=2)
    tensors = {n: torch.zeros_like(t) for n, t in tiny.weights(cfg, scale=0).items()}
    big = tiny.make_folder(tmp_path / "big", cfg, tensors=tensors)
    size = sum(t.nbytes for t in tensors.values())
    del tensors
    assert size > 150 << 20

    def growth(how: str) -> float:
        command = [sys.executable, "-c", MEASURE, how, str(folder), str(big)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / size

    assert 0.9 < growth("minillm") <= 1.1
    assert growth("naive") > 1.5, "control: load everything, then copy"


def test_llm_needs_no_second_copy_to_run(folder: Path) -> None:
    """The files are loaded directly into the parameters: there is no converted copy."""
    llm = LLM(folder, kv_memory="1MiB", backend="reference", device="cpu")
    decoder = llm.engine.model.decoder
    assert sum(p.nbytes for p in decoder.parameters()) == llm.engine.model.config.num_parameters * 4
