"""`minillm inspect` names the parts of each layer, and counts what one token reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import zero_checkpoints

from minillm import LLM
from minillm.cli.inspect_layers import ranges
from minillm.cli.main import main
from minillm.config.quantization import QUANTIZATIONS

GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_local_experts": 32,
    "torch_dtype": "bfloat16",
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}


def folder_of(config: dict[str, Any], folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def report_of(
    config: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> dict[str, Any]:
    assert main(["inspect", folder_of(config, folder), "--json", *options]) == 0
    return dict(json.loads(capsys.readouterr().out))


def text_of(
    config: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], words_only: bool = True
) -> str:
    assert main(["inspect", folder_of(config, folder), "--context", "100"]) == 0
    out = capsys.readouterr().out
    return " ".join(out.replace("│", " ").split()) if words_only else out


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_equal_layers_stand_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = text_of(GEMMA3, tmp_path, capsys)
    common, sliding, full = (
        "the block, in all 26 layers",
        "layers 0-4, 6-10, 12-16, 18-22, 24-25",
        "layers 5, 11, 17, 23",
    )
    first, _, rest = said.partition(common)[2].partition(sliding)
    second, _, third = rest.partition(full)
    assert "RMSNorm before and after attention and MLP, times (1 + weight)" in first
    assert "norm of q, k each head apart" in first and "gelu_tanh(gate) * up, size 6,912" in first
    assert "rope, theta 10,000" in second and "window 512 tokens" in second
    assert "rope, theta 1,000,000" in third and "window none" in third
    assert "window" not in first and "rope" not in first
    assert "999,885,952 parameters" in third  # Gemma 3 1B


def test_json_has_an_entry_for_each_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = report_of(GEMMA3, tmp_path, capsys)["layers"]
    assert [layer["layer"] for layer in layers] == list(range(26))
    assert [layer["window"] for layer in layers[3:7]] == [512, 512, None, 512]
    assert layers[5]["rope"] == {"kind": "default", "theta": 1e6, "rotary_dim": 256}
    assert layers[4]["rope"]["theta"] == 1e4 and layers[4]["norms"] == "sandwich"
    assert layers[0]["mlp"] == {"size": 6912, "activation": "gelu_tanh", "gated": True}
    assert layers[0]["experts"] is None and layers[0]["qk_norm"] == "head"


def test_gpt_oss_has_sinks_experts_and_yarn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = text_of(GPT_OSS, tmp_path, capsys)
    assert "layers 0, 2, ..., 22" in said and "layers 1, 3, ..., 23" in said
    assert "32, of which a token uses 4; swiglu_clamped, size 2,880; weights sum to 1" in said
    assert "sinks one score per head" in said and "biases q, k, v, o, experts and router" in said
    assert "rope yarn, theta 150,000, factor 32" in said
    assert "intermediate_size" not in said  # no layer has one MLP


def test_only_the_experts_in_use_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gpt-oss-20b as its model card counts it: 20.9B parameters, 3.6B of them active."""
    report = report_of(GPT_OSS, tmp_path, capsys, "--context", "1")
    assert round(report["parameters"] / 1e9, 1) == 20.9
    assert round(report["active_parameters"] / 1e9, 1) == 3.6
    assert f"{report['active_parameters']:,} of them are active per token" in text_of(
        GPT_OSS, tmp_path, capsys
    )
    kv = report["kv_bytes_per_token"]
    assert report["contexts"][0]["bytes_read_per_decoded_token"] == 2 * report["active_parameters"] + kv
    each = 3 * 2880 * 2880 + 3 * 2880  # an expert's matrices and biases
    all_used = report_of(GPT_OSS | {"num_experts_per_tok": 32}, tmp_path, capsys)
    assert all_used["active_parameters"] - report["active_parameters"] == 24 * 28 * each
    assert all_used["parameters"] == report["parameters"]


def test_gpt2_has_neither_rope_nor_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = text_of(GPT2, tmp_path, capsys)
    assert "LayerNorm with bias before attention and MLP" in said
    assert "positions learned vectors" in said and "gelu_tanh(up), no gate, size 3,072" in said
    assert "theta" not in said and "active per token" not in said
    assert "124,439,808 parameters" in said


def test_the_table_has_no_row_that_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny.config()
    absent = ("norm_offset", "logits_softcap", "expert_bias", "learned_positions", "qkv_bias", "window none;")
    said = text_of(plain, tmp_path, capsys)
    assert [name for name in absent if name in said] == []
    keys = {field["key"] for field in report_of(plain, tmp_path, capsys)["config"]}
    assert {"norm_offset", "logits_softcap", "qkv_bias"} <= keys  # for programs every field is there
    # The control: where they say something, they are there.
    granite = plain | {"architectures": ["GraniteForCausalLM"], "model_type": "granite"}
    said = text_of(granite | {"attention_bias": True, "logits_scaling": 8.0}, tmp_path, capsys)
    assert "qkv_bias True config.json" in said and "logits_divisor 8.0 config.json" in said


def test_sources_follow_the_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {f["key"]: f["source"] for f in report_of(GEMMA3, tmp_path, capsys)["config"]}
    assert fields["rope"] == fields["window"] == fields["norm_eps"] == fields["dtype"] == "config.json"
    assert fields["norm_offset"] == "family" and fields["tie_word_embeddings"] == "default"
    del (without := dict(GEMMA3))["sliding_window"]
    fields = {f["key"]: f["source"] for f in report_of(without, tmp_path, capsys)["config"]}
    assert fields["window"] == "default"


def test_a_model_with_dense_and_expert_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 8}
    sizes = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [0]}
    config = tiny.config(num_hidden_layers=3, **names, **sizes)
    said = text_of(config, tmp_path, capsys)
    assert "layer 0" in said and "MLP silu(gate) * up, size 64" in said
    assert "layers 1-2" in said and "size 24; weights not renormalised" in said
    assert "intermediate_size 64" in said
    layers = report_of(config, tmp_path, capsys)["layers"]
    assert [bool(layer["experts"]) for layer in layers] == [False, True, True]
    assert layers[1]["experts"]["renormalize"] is False


def test_nothing_is_cut_at_40_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for config in (GEMMA3, GPT_OSS, GPT2, tiny.config(**MIXTRAL)):
        lines = text_of(config, tmp_path, capsys, words_only=False).splitlines()
        assert max(map(len, lines)) <= 40 and "…" not in "".join(lines)
    assert "4, of which a token" in " ".join(lines)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([5], "layer 5"),
        ([0, 1, 2, 3], "layers 0-3"),
        ([0, 1, 3], "layers 0-1, 3"),
        ([5, 11, 17, 23], "layers 5, 11, 17, 23"),
        ([0, 2, 4, 6, 8], "layers 0, 2, ..., 8"),
        ([0, 2, 4, 6, 9], "layers 0, 2, 4, 6, 9"),
    ],
)
def test_ranges(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said


def test_quantised(capsys):
    """The bytes of the file's matrices, and what they are stored in."""
    sizes = {}
    for scheme in (None, "int8", "int4"):
        more = ["--quantization", scheme] if scheme else []
        assert main(["inspect", "storyteller-6m", "--json", *more]) == 0
        report = json.loads(capsys.readouterr().out)
        sizes[scheme] = report["weight_bytes"]
        assert set(report["quantized"]) == ({"qkv", "o", "gate_up", "down", "embedding"} if scheme else set())
    assert sizes["int4"] < 0.7 * sizes["int8"] < 0.4 * sizes[None]
    assert main(["inspect", "storyteller-6m", "--quantization", "int4"]) == 0
    assert "gate_up: uint4, groups of 32, with minima" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["storyteller-6m", "experts"])
def test_every_scheme_has_the_bytes_that_a_loaded_model_has(model, tmp_path, capsys):
    if model == "experts":
        model = str(families.make_folder(tmp_path, "mixtral", hidden_size=128))
    assert main(["inspect", model, "--json", "--dtype", "bfloat16", "--memory", "1MiB"]) == 0
    report = json.loads(capsys.readouterr().out)
    options = {"dtype": "bfloat16", "backend": "reference", "kv_memory": "1MiB"}
    rows = {row["quantization"]: row for row in report["schemes"]}
    assert list(rows) == [None, *QUANTIZATIONS] and rows[None]["weight_bytes"] == report["weight_bytes"]
    for scheme in (None, "int8", "int4", "fp8"):
        read = LLM(model, quantization=scheme, **options).engine.model.decoder.step_bytes()
        assert rows[scheme]["bytes_per_step"] == pytest.approx(read, rel=0.01)
    for row in report["kv_dtypes"]:
        pool = LLM(model, kv_dtype=row["kv_dtype"], **options).engine.memory.pool
        assert 0 <= row["tokens_that_fit"] - pool.num_blocks * pool.block_size < pool.block_size


def test_stored_quantised(capsys, tmp_path):
    """What is counted is what the files have. No scheme is applied on top; a config alone says nothing."""
    folder = tmp_path / "m"
    zero_checkpoints.write(
        folder, families.config("gpt_oss", intermediate_size=64), {"quant_method": "mxfp4"}
    )
    assert main(["inspect", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["quantized"] == dict.fromkeys(["expert_gate_up", "expert_down"], "fp4, groups of 32")
    assert main(["inspect", str(folder), "--quantization", "int4"]) == 2
    assert "is stored quantised (mxfp4)" in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    assert main(["inspect", str(folder), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["quantized"] == {} and plain["weight_bytes"] > report["weight_bytes"]
