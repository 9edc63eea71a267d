"""What a `quantization_config` says beside the tensors: it decides which numbers their bytes are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import families
import pytest
import test_stored_quantized
import tiny
import torch
from company import PROMPTS, WIDE
from stored_models import write
from test_stored_quantized import GPTQ, PACKED, gptq, packed
from torch import Tensor

from minillm.errors import WeightsError

DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture
def stored() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a GPTQ checkpoint, in order."""
    cfg = tiny.config(**WIDE)
    sizes = {tensor.shape[1] for tensor in tiny.weights(cfg).values() if tensor.dim() == 2}
    return cfg, gptq(tiny.weights(cfg, scale=0.1), {size: torch.arange(size) for size in sizes})[0]


def test_settings_are_part_of_the_envelope(tmp_path: Path, stored: Any) -> None:
    """The same bytes with other zero points are another model: its keys and values must not be shared."""
    cfg, tensors = stored
    asymmetric = GPTQ | {"sym": False, "desc_act": False}
    made = [
        write(tmp_path / name, cfg, tensors, asymmetric | {"checkpoint_format": name})
        for name in ("gptq", "gptq_v2")
    ]
    one, other = (tiny.load(folder) for folder in made)
    assert not torch.equal(one.logits(PROMPTS[3]), other.logits(PROMPTS[3]))
    assert one.engine.model.weights_digest != other.engine.model.weights_digest
    again = tiny.load(made[0])
    assert one.engine.model.weights_digest == again.engine.model.weights_digest


def test_act_order_needs_its_indices(tmp_path: Path, stored: Any) -> None:
    cfg, tensors = stored
    del tensors[f"{DOWN}.g_idx"]
    with pytest.raises(WeightsError, match=r"missing: .*down_proj.g_idx"):
        tiny.load(write(tmp_path / "model", cfg, tensors, GPTQ))
    tiny.load(write(tmp_path / "plain", cfg, tensors, GPTQ | {"desc_act": False}))


def test_biases_of_zeros_are_left_out(tmp_path: Path, stored: Any) -> None:
    """Old versions of AutoGPTQ store one beside every matrix, of models that have none."""
    cfg, tensors = stored
    plain = tiny.load(write(tmp_path / "plain", cfg, tensors, GPTQ))
    scales = [name for name in tensors if name.endswith(".scales")]
    biases = {name.replace(".scales", ".bias"): torch.zeros(tensors[name].shape[1]).half() for name in scales}
    with_biases = tiny.load(write(tmp_path / "biases", cfg, tensors | biases, GPTQ))
    assert torch.equal(with_biases.logits(PROMPTS[3]), plain.logits(PROMPTS[3]))
    biases[f"{DOWN}.bias"][3] = 1
    with pytest.raises(WeightsError, match=r"unexpected: .*down_proj.bias"):
        tiny.load(write(tmp_path / "real", cfg, tensors | biases, GPTQ))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_a_router_that_is_stored_quantised(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets of compressed-tensors name it, if `ignore` does not. It is dequantised, exactly."""
    ends = ("proj.weight", "gate.weight", "w1.weight", "w2.weight", "w3.weight")
    monkeypatch.setattr(test_stored_quantized, "is_quantized", lambda name: name.endswith(ends))
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}
    usual = families.config(family)
    cfg = families.config(family, **{key: size for key, size in sizes.items() if key in usual})
    coded, plain = packed(families.weights(cfg))
    assert any(name.endswith("gate.weight_packed") for name in coded)
    with caplog.at_level(logging.WARNING):
        one = tiny.load(write(tmp_path / "packed", cfg, coded, PACKED))
    assert "layer 1 router" in caplog.text
    other = tiny.load(write(tmp_path / "plain", cfg, plain))
    assert torch.allclose(one.logits(PROMPTS[3]), other.logits(PROMPTS[3]), atol=2e-4, rtol=1e-3)
    forms = one.engine.model.config.layers[1].quantization
    assert forms is not None and "router" not in forms
