"""A GGUF file becomes the folder it was once made of: the same config, bits, tokens; or it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ggufs
import pytest
import torch
from ggufs import FAMILIES, Stored
from safetensors.torch import load_file

from minillm import LLM
from minillm.errors import MinillmError, StorageError, UnsupportedModel, UsageError, WeightsError
from minillm.model.checkpoint import stored_tensors
from minillm.model.families import parse_config
from minillm.model.gguf.architecture import config_json
from minillm.model.gguf.convert import Conversion, convert
from minillm.model.gguf.header import read_header
from minillm.model.gguf.layout import rewrites

pytest.importorskip("gguf", reason="the library gguf is not installed: pip install gguf")

VARIANTS = [
    "llama_mha", "llama_gqa_head_dim", "llama_attention_bias", "llama_mlp_bias", "llama_tied",
    "llama_sharded", "llama_rope_linear", "llama_rope_yarn", "llama_rope_theta", "llama_rms_norm_eps",
    "tinyllama_like", "smollm2_like", "mistral_sliding_window", "mistral_window_null", "qwen2", "qwen2_tied",
    "qwen2_yarn", "qwen3", "qwen3_attention_bias", "qwen3_tied",
]  # fmt: skip
PROMPT = [1, 2, 3, 40, 50, 60, 7, 8, 9, 10]


def file_of(tmp_path: Path, variant: str, keys: dict[str, Any] | None = None) -> Path:
    """The variant as a file, with other keys; a key that is None is left out."""
    metadata, stored = ggufs.model(variant)
    metadata = {k: v for k, v in (metadata | (keys or {})).items() if v is not None}
    return ggufs.write(tmp_path / "model.gguf", metadata, stored)


def logits(folder: Path) -> torch.Tensor:
    return LLM(folder, dtype="float32", backend="reference", device="cpu", kv_memory="16MiB").logits(PROMPT)


# ---- the same model -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_and_logits_come_back_bit_by_bit(tmp_path: Path, variant: str) -> None:
    out = tmp_path / "out"
    convert(file_of(tmp_path, variant), out)
    original = {k: v for f in (FAMILIES / variant).glob("*.safetensors") for k, v in load_file(f).items()}
    made = load_file(out / "model.safetensors")
    assert made.keys() == original.keys()
    assert all(torch.equal(made[name], original[name].float()) for name in made)
    assert torch.equal(logits(out), logits(FAMILIES / variant))


def test_control_rows_left_in_the_files_order_change_the_logits(tmp_path: Path) -> None:
    metadata, stored = ggufs.model("llama_mha")
    rows = torch.frombuffer(bytearray(stored["blk.0.attn_q.weight"].data), dtype=torch.float32)
    sizes = stored["blk.0.attn_q.weight"].sizes
    stored["blk.0.attn_q.weight"] = ggufs.f32(rows.view(sizes[1], sizes[0]).roll(1, 0))
    convert(ggufs.write(tmp_path / "m.gguf", metadata, stored), tmp_path / "out")
    assert not torch.allclose(logits(tmp_path / "out"), logits(FAMILIES / "llama_mha"), atol=1e-2)


def test_llama3_rope_is_recognised_by_its_factors(tmp_path: Path) -> None:
    """The factors are those of Llama 3.1 (head 128, theta 500000, factor 8), by transformers' formula."""
    frequencies = 500000.0 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    wavelengths = 2 * torch.pi / frequencies
    smooth = (8192 / wavelengths - 1) / 3
    scaled = torch.where(
        wavelengths > 8192, frequencies / 8, (1 - smooth) * frequencies / 8 + smooth * frequencies
    )
    scaled = torch.where(wavelengths < 8192 / 4, frequencies, scaled)
    factors = (frequencies / scaled).float()
    keys = {
        f"llama.{k}": 128 for k in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    }
    keys |= {"llama.rope.freq_base": 500000.0}
    metadata, stored = ggufs.model("llama_mha")
    stored = {k: v for k, v in stored.items() if k == "token_embd.weight"} | {
        "rope_freqs.weight": ggufs.f32(factors)
    }
    file = ggufs.write(tmp_path / "m.gguf", metadata | keys, stored)
    with pytest.raises(WeightsError, match="missing"):  # the config was made: only its tensors are not there
        Conversion.of(file)
    config = config_json(read_header(file), factors.tolist())
    assert config["rope_scaling"] == {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        config_json(read_header(file), (factors * 1.01).tolist())
    lies = {key: 1 << 31 for key in keys if key != "llama.rope.freq_base"}  # a list of so many is not made
    file = ggufs.write(tmp_path / "lies.gguf", metadata | keys | lies, stored)
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight holds 64 numbers"):
        config_json(read_header(file), factors.tolist())


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    """A flipped bit in an offset would load another matrix, without a word."""
    metadata, stored = ggufs.model("llama_mha")
    file = ggufs.write(tmp_path / "m.gguf", metadata, stored)
    header = read_header(file)
    gate, up = (header.tensors[f"blk.0.ffn_{name}.weight"] for name in ("gate", "up"))
    moved = replace(header, tensors=header.tensors | {up.name: replace(up, offset=gate.offset)})
    config = parse_config(config_json(header, None))
    assert rewrites(header, config, reordered=True)
    with pytest.raises(WeightsError, match=r"ffn_(gate|up).* and .*ffn_(gate|up).* overlap"):
        rewrites(moved, config, reordered=True)


def test_quantised_blocks_are_read_by_their_rule(tmp_path: Path) -> None:
    """Q4_0 and Q8_0, written out by hand: scale (float16) x (bits - 8), scale x signed byte."""
    metadata, stored = ggufs.model("llama_mha")
    shape = tuple(reversed(stored["blk.0.ffn_up.weight"].sizes))
    q4 = ggufs.random_stored(shape, ggufs.Q4_0, (32, 18))
    q8 = ggufs.random_stored(shape, ggufs.Q8_0, (32, 34), seed=1)
    stored |= {"blk.0.ffn_up.weight": q4, "blk.0.ffn_gate.weight": q8}
    convert(ggufs.write(tmp_path / "m.gguf", metadata, stored), tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    blocks = torch.frombuffer(bytearray(q4.data), dtype=torch.uint8).view(-1, 18)
    scales = blocks[:, :2].contiguous().view(torch.float16).float()
    bits = torch.cat([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], dim=1).float() - 8
    assert torch.equal(made["model.layers.0.mlp.up_proj.weight"], (scales * bits).view(shape))
    blocks = torch.frombuffer(bytearray(q8.data), dtype=torch.uint8).view(-1, 34)
    scales = blocks[:, :2].contiguous().view(torch.float16).float()
    numbers = blocks[:, 2:].contiguous().view(torch.int8).float()
    assert torch.equal(made["model.layers.0.mlp.gate_proj.weight"], (scales * numbers).view(shape))


def stored_as(tmp_path: Path, type_id: int) -> Path:
    """A file whose matrices have one type, or BF16 where its blocks do not fit; norms are F32, as usual."""
    blocks = {ggufs.F16: (1, 2), ggufs.BF16: (1, 2), ggufs.Q4_0: (32, 18)}
    metadata, stored = ggufs.model("llama_tied")
    for name, old in stored.items():
        if type_id != ggufs.F32 and len(old.sizes) > 1:
            kind = ggufs.BF16 if old.sizes[0] % blocks[type_id][0] else type_id
            stored[name] = ggufs.random_stored(tuple(reversed(old.sizes)), kind, blocks[kind])
    return ggufs.write(tmp_path / f"{type_id}.gguf", metadata, stored)


@pytest.mark.parametrize(
    ("type_id", "stored", "computed"),
    [
        (ggufs.F32, "F32", torch.float32),
        (ggufs.F16, "F32", torch.float32),
        (ggufs.BF16, "BF16", torch.bfloat16),
        (ggufs.Q4_0, "BF16", torch.float32),
    ],
)
def test_dtypes_of_weights_and_arithmetic(
    tmp_path: Path, type_id: int, stored: str, computed: torch.dtype
) -> None:
    """Plain numbers stay exact; quantised ones are stored in 2 bytes and computed in float32."""
    file = stored_as(tmp_path, type_id)
    convert(file, tmp_path / "out")
    assert {t.dtype for t in stored_tensors(tmp_path / "out").values()} == {stored}
    llm = LLM(tmp_path / "out", backend="reference", device="cpu", kv_memory="16MiB")
    assert llm.engine.model.dtype == computed
    given = Conversion.of(file, "bfloat16")
    assert (given.dtype, given.config["torch_dtype"]) == (torch.bfloat16, "bfloat16")
    with pytest.raises(UsageError, match="float8"):
        Conversion.of(file, "float8")


def test_settings_come_along(tmp_path: Path) -> None:
    sampling = {"general.sampling.temp": 0.7, "general.sampling.top_k": ggufs.Typed(5, 20)}
    convert(file_of(tmp_path, "llama_tied", sampling), tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_k"], generation["eos_token_id"]) == (0.7, 20, 0)
    llm = LLM(tmp_path / "out", backend="reference", device="cpu")
    assert llm.default_params.temperature == 0.7 and llm.default_params.top_k == 20
    assert llm.tokenizer.encode("the")[0] == 0, "the file asks for BOS"
    assert llm.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        config["rms_norm_eps"]
        == json.loads((FAMILIES / "llama_tied" / "config.json").read_text())["rms_norm_eps"]
    )


# ---- refused, with the right word -----------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "gemma3"}, "gemma3"),
    ({"general.type": "adapter"}, "adapter"),
    ({"split.count": ggufs.Typed(2, 3), "split.no": ggufs.Typed(2, 0)}, "part 1 of 3"),
    ({"llama.expert_count": 8}, "expert_count"),
    ({"llama.attention.causal": False}, "causal"),
    ({"llama.logit_scale": 2.0}, "logit_scale"),
    ({"llama.rope.dimension_count": 4}, "rope.dimension_count"),
    ({"llama.attention.value_length": 4}, "value_length"),
    ({"llama.rope.scaling.type": "longrope"}, "longrope"),
    ({"llama.rope.scaling.attn_factor": 2.0}, "attn_factor"),
    ({"llama.attention.head_count_kv": [2, 4]}, "differs between layers"),
    ({"llama.block_count": None}, "llama.block_count"),
    ({"llama.block_count": "two"}, "llama.block_count"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "finite"),
    ({"llama.attention.head_count": 0}, "num_attention_heads"),
    ({"llama.context_length": ggufs.Typed(5, -1)}, "max_position_embeddings"),
    ({"llama.embedding_length": ggufs.Typed(10, 1 << 62)}, "1 << 62|4611686018427387904"),
    ({"llama.block_count": ggufs.Typed(10, 1 << 40)}, "num_hidden_layers"),
    ({"tokenizer.ggml.pre": "superbpe"}, "superbpe"),
    ({"tokenizer.ggml.model": "t5"}, "t5"),
    ({"tokenizer.ggml.model": None}, "no tokenizer"),
]


@pytest.mark.parametrize(("keys", "word"), REFUSED, ids=lambda case: str(case)[:50])
def test_what_is_not_supported_is_named(tmp_path: Path, keys: dict[str, Any], word: str) -> None:
    file = file_of(tmp_path, "llama_mha", keys)
    with pytest.raises(MinillmError, match=word) as caught:
        convert(file, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"], "nothing is left behind"


TENSORS: list[tuple[str, Stored | None, str]] = [
    ("blk.0.attn_q.weight", None, "1 missing: blk.0.attn_q.weight"),
    ("blk.0.ffn_gate_exps.weight", ggufs.f32(torch.ones(2, 2)), "unexpected: blk.0.ffn_gate_exps"),
    ("output_norm.weight", ggufs.f32(torch.ones(3)), "output_norm"),
    ("output_norm.weight", Stored((1 << 39,), ggufs.F32, b"1234"), "output_norm"),
    ("blk.0.ffn_norm.weight", ggufs.f32(torch.full((32,), float("nan"))), "not finite"),
    ("token_embd.weight", None, "token_embd"),
]


@pytest.mark.parametrize(("name", "tensor", "word"), TENSORS, ids=lambda case: str(case)[:40])
def test_wrong_tensors_are_named(tmp_path: Path, name: str, tensor: Stored | None, word: str) -> None:
    metadata, stored = ggufs.model("llama_mha")
    if "norm" in name and "not finite" in word:
        tensor = ggufs.f32(torch.full((stored[name].sizes[0],), float("nan")))
    stored = {k: v for k, v in (stored | {name: tensor}).items() if v is not None}
    file = ggufs.write(tmp_path / "model.gguf", metadata, stored)
    with pytest.raises(MinillmError, match=word):
        convert(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


@pytest.mark.parametrize(
    ("type_id", "word"), [(4, "number 4"), (ggufs.I32, "I32"), (999, "999"), (15, "Q8_K")]
)
def test_tensor_types_are_named(tmp_path: Path, type_id: int, word: str) -> None:
    metadata, stored = ggufs.model("llama_mha")
    old = stored["blk.0.ffn_up.weight"]
    stored["blk.0.ffn_up.weight"] = Stored(old.sizes, type_id, old.data)
    with pytest.raises(UnsupportedModel, match=word):
        Conversion.of(ggufs.write(tmp_path / "m.gguf", metadata, stored))


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    file = file_of(tmp_path, "llama_mha")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError):
        convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- where it is written --------------------------------------------------------------------------


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(UsageError, match="exists"):
        convert(file_of(tmp_path, "llama_tied"), out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both before the first byte and in the middle."""
    import errno

    from minillm.model.gguf import convert as module

    file = file_of(tmp_path, "llama_tied")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5})())
    with pytest.raises(StorageError, match="5 B free"):
        convert(file, tmp_path / "out")
    monkeypatch.undo()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "append", full)
    with pytest.raises(StorageError, match="No space left"):
        convert(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.new-abc"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"x" * 100)
    other = tmp_path / ".other.new-abc"
    other.mkdir()
    convert(file_of(tmp_path, "llama_tied"), tmp_path / "out")
    assert not left.exists() and other.exists()


def test_what_a_running_process_writes_is_not_removed(tmp_path: Path) -> None:
    from minillm.model.new_folder import new_folder, remove_leftovers

    with new_folder(tmp_path / "out") as running:
        remove_leftovers(tmp_path / "out")
        assert running.exists()
        (running / "x").write_text("x")
    assert (tmp_path / "out" / "x").exists()
