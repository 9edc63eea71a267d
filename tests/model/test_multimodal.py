"""A multimodal folder runs its text model; folders without text, or with unfit parts, are refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minillm import LLM
from minillm.errors import MinillmError, UnsupportedModel, WeightsError
from minillm.model.families import parse_config

SOURCE = Path(__file__).parent / "families"
BOTH = ("gemma3_multimodal", "gemma3_multimodal_v5_names")
Tensors = dict[str, torch.Tensor]


def config_of(checkpoint: str = BOTH[0]) -> dict[str, Any]:
    return dict(json.loads((SOURCE / checkpoint / "config.json").read_text()))


def load(
    tmp_path: Path,
    checkpoint: str = BOTH[0],
    keys: dict[str, Any] | None = None,
    edit: Callable[[Tensors], Tensors] = dict,
) -> LLM:
    """The checkpoint with other keys and other tensors."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(edit(load_file(SOURCE / checkpoint / "model.safetensors")), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_of(checkpoint) | (keys or {})))
    return LLM(folder, dtype="float32", backend="reference", device="cpu")


def is_right(llm: LLM, checkpoint: str = BOTH[0]) -> bool:
    reference = np.load(SOURCE / checkpoint / "reference.npz", allow_pickle=False)
    expected = torch.from_numpy(reference["logits"])
    difference = (llm.logits(reference["token_ids"].tolist()) - expected).abs().max()
    return bool(difference <= 2e-4 * expected.abs().max())


@pytest.mark.parametrize("checkpoint", BOTH)
def test_the_text_model_loads_and_one_warning_says_what_is_left_out(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        llm = load(tmp_path, checkpoint)
    (warning,) = [record.message for record in caplog.records]
    assert "23 tensors of the vision part" in warning
    assert is_right(llm, checkpoint)
    assert parse_config(config_of(checkpoint)).family == "gemma3_text"


@pytest.mark.parametrize("stem", ["lm_head", "language_model.lm_head"])
def test_a_head_is_known_by_both_names(stem: str, tmp_path: Path) -> None:
    def with_head(tensors: Tensors) -> Tensors:
        return tensors | {f"{stem}.weight": tensors["language_model.model.embed_tokens.weight"].flip(0)}

    tied = config_of()["text_config"] | {"tie_word_embeddings": False}
    llm = load(tmp_path, keys={"tie_word_embeddings": False, "text_config": tied}, edit=with_head)
    reference = np.load(SOURCE / BOTH[0] / "reference.npz", allow_pickle=False)
    expected = torch.from_numpy(reference["logits"]).flip(-1)
    assert torch.allclose(llm.logits(reference["token_ids"].tolist()), expected, rtol=0, atol=1e-3)


def test_a_text_config_may_leave_sizes_to_their_defaults() -> None:
    """As that of gemma-3-4b-it."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024}  # fmt: skip
    config = parse_config(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": text,
            "vision_config": {"hidden_size": 1152},
            "eos_token_id": [1, 106],
            "torch_dtype": "bfloat16",
            "mm_tokens_per_image": 256,
        }
    )
    assert (config.vocab_size, config.num_attention_heads, config.num_key_value_heads) == (262208, 8, 4)
    assert (config.head_dim, config.dtype, config.eos_token_ids) == (256, "bfloat16", (1, 106))
    assert config.tie_word_embeddings and config.multimodal
    full, sliding = config.layers[5].rope, config.layers[0].rope
    assert full and sliding and (full.theta, full.kind, sliding.theta) == (1e6, "linear", 1e4)
    assert [i for i, layer in enumerate(config.layers) if layer.window is None] == [5, 11, 17, 23, 29]


# ---- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"text_config": None}, "text_config"),
        ({"text_config": []}, "text_config"),
        ({"text_config": {"model_type": "gemma3n_text"}}, "gemma3n_text"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"text_config": config_of()["text_config"] | {"quantization_config": {"bits": 4}}}, "quantized"),
        ({"model_type": "gemma4"}, "gemma4"),
        ({"a_key_nobody_knows": 1}, "a_key_nobody_knows"),
        ({"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}, "images"),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}, "images"),
        ({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}, "images"),
        ({"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"}, "images"),
    ],
    ids=str,
)
def test_configs_that_are_refused_by_name(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        parse_config(config_of() | keys)
    assert named in str(refusal.value)


@pytest.mark.parametrize("key", ["vision_config", "audio_config"])
def test_a_text_model_with_a_part_for_images_is_refused(key: str) -> None:
    config = json.loads((SOURCE / "gemma3" / "config.json").read_text())
    parse_config(config)  # the control
    with pytest.raises(UnsupportedModel, match=rf"images or sound \({key}"):
        parse_config(config | {key: {"hidden_size": 8}})


def without(*beginnings: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(beginnings)}


def test_weights_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights of a text model.*language_model"):
        load(tmp_path, edit=without("language_model."))


def test_a_text_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing: model\.layers\.1\."):
        load(tmp_path, edit=without("language_model.model.layers.1."))


def test_text_alone_loads_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert is_right(load(tmp_path, edit=without("vision_tower.", "multi_modal_projector.")))
    assert not caplog.records


def test_a_tensor_of_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"unexpected: audio_tower\.weight"):
        load(tmp_path, edit=lambda tensors: tensors | {"audio_tower.weight": torch.zeros(2)})


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    name = "language_model.model.norm.weight"
    with pytest.raises(WeightsError, match="stored twice"):
        load(tmp_path, edit=lambda t: t | {"model.language_model.norm.weight": t[name].clone()})


def test_vision_tensors_beside_a_text_model_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = load_file(SOURCE / "gemma3" / "model.safetensors")
    save_file(tensors | {"vision_tower.x.weight": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text((SOURCE / "gemma3" / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"1 tensors are of a part for images.*vision_tower\.x\.weight"):
        LLM(folder, dtype="float32", backend="reference", device="cpu")


def test_any_value_at_any_key() -> None:
    """A typed error or a config, whatever stands in the outer or in the inner config."""
    raw = config_of()
    wrong = []
    for outer in (True, False):
        for key in raw if outer else raw["text_config"]:
            for value in hostile.VALUES:
                inner = raw["text_config"] if outer else raw["text_config"] | {key: value}
                changed = raw | {key: value} if outer else raw | {"text_config": inner}
                try:
                    parse_config(changed)
                except MinillmError:
                    continue
                except Exception as error:
                    wrong.append(f"{key}={str(value)[:30]!r}: {type(error).__name__} {error}"[:200])
    assert wrong == []
