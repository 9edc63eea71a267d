"""`minillm convert --keep-quantized`: the engine computes with the file's own numbers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import tiny
import torch
from company import PROMPTS, answers, same
from quantized_folders import GGUF_MATRICES as ALL
from quantized_folders import GGUF_TYPES, gguf_file
from safetensors import safe_open

from minillm.cli.main import main
from minillm.errors import UnsupportedModel, WeightsError
from minillm.model.gguf.convert import convert
from minillm.model.quantization.gguf import GGUF_SCHEMES
from minillm.model.store.gguf import folder_of_gguf


def both(tmp_path: Path, kinds: dict[str, str]) -> tuple[Path, Path]:
    """A folder that keeps the blocks, and one with the numbers in float32."""
    file = gguf_file(tmp_path, kinds)
    convert(file, tmp_path / "kept", keep=True)
    convert(file, tmp_path / "plain", dtype="float32")
    return tmp_path / "kept", tmp_path / "plain"


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_every_number_is_the_file_s(tmp_path: Path, kind: str) -> None:
    """Rows of q and k come back in the folder's order, and no number is rounded."""
    kept, plain = (tiny.load(folder) for folder in both(tmp_path, dict.fromkeys(ALL, kind)))
    config = kept.engine.model.config
    assert config.layers[0].quantization and "qkv" in config.layers[0].quantization
    for one, other in zip(
        kept.engine.model.decoder.matrices, plain.engine.model.decoder.matrices, strict=True
    ):
        ops = kept.engine.model.decoder.ops
        assert torch.equal(ops.unpack_weight(one), ops.unpack_weight(other))
    ids = [5, 9, 30, 7, 7, 12]
    found, exact = kept.logits(ids), plain.logits(ids)
    assert exact.isfinite().all()
    assert (found - exact).norm() < 1e-4 * exact.norm()


def test_a_file_that_is_used_directly_says_what_becomes_of_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO):
        folder_of_gguf(gguf_file(tmp_path, {"ffn_up": "Q4_1", "ffn_gate": "Q8_0"}))
    assert "its blocks (Q4_1, Q8_0) become" in caplog.text
    assert "minillm convert m.gguf OUT --keep-quantized keeps them" in caplog.text


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_blocks_of_256_alone_or_in_company(tmp_path: Path, kind: str) -> None:
    """Their matrices stay 4 and 8 bits, and a row's bits do not depend on its company (C2)."""
    kept, _ = both(tmp_path, dict.fromkeys(ALL, kind))
    llm = tiny.load(kept)
    config, form = llm.engine.model.config, GGUF_SCHEMES[kind].kept_in
    assert config.layers[0].quantization == dict.fromkeys(("qkv", "o", "gate_up", "down"), form)
    assert config.quantization == {"embedding": form, "head": form}
    alone = [answers(llm, [prompt])[0] for prompt in PROMPTS]
    assert same(alone, answers(tiny.load(kept), PROMPTS))
    assert not same(alone, [*alone[1:], alone[0]]), "the control: other prompts have other numbers"


def test_the_folder_has_the_file_s_size(tmp_path: Path) -> None:
    kept, plain = both(tmp_path, dict.fromkeys(ALL, "Q4_0"))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (kept, plain)]
    assert sizes[0] < 0.5 * sizes[1]
    with safe_open(kept / "model.safetensors", "pt") as file:
        assert file.get_slice("model.layers.0.self_attn.q_proj").get_dtype() == "U8"
    config = json.loads((kept / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "gguf" and set(config["types"].values()) == {"Q4_0"}


def test_mixed_types(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """q, k and v of different types are one matrix here: it is dequantised, and the numbers stay exact."""
    kinds = {"attn_q": "Q4_0", "attn_k": "Q4_0", "attn_v": "Q8_0", "ffn_down": "Q4_1", "ffn_up": "Q4_1"}
    kept, plain = (tiny.load(folder) for folder in both(tmp_path, kinds))
    assert "layer 0 qkv" in caplog.text and "layer 0 gate_up" in caplog.text
    forms = kept.engine.model.config.layers[0].quantization or {}
    assert "qkv" not in forms
    ids = [5, 9, 30, 7]
    assert torch.allclose(kept.logits(ids), plain.logits(ids), atol=1e-4, rtol=1e-4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = gguf_file(tmp_path, dict.fromkeys(ALL, "Q8_0"))
    assert main(["convert", str(file), str(tmp_path / "out"), "--keep-quantized", "--quiet"]) == 0
    assert "of them keep their blocks" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [{"types": 3}, {}, {"types": {}, "more": 1}, {"types": {"a": "Q2_K"}}])
def test_configs_that_minillm_did_not_write(tmp_path: Path, bad: dict[str, object]) -> None:
    kept, _ = both(tmp_path, dict.fromkeys(ALL, "Q4_0"))
    config = json.loads((kept / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gguf", **bad}
    (kept / "config.json").write_text(json.dumps(config))
    with pytest.raises((UnsupportedModel, WeightsError)):
        tiny.load(kept)
