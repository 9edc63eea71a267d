"""Checkpoints whose parts do not fit each other: layers, windows, experts, ropes and norms, refused by name.

Each case is a sound checkpoint of `tests/model/families` with one change. A key set to `...` is removed. The
sound checkpoints load (`test_families.py`), and so does each control.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from safetensors.torch import load_file, save_file

from minillm import LLM
from minillm.errors import UnsupportedModel, WeightsError
from minillm.model.families import parse_config

FAMILIES = Path(__file__).parent / "families"
FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


def changed(checkpoint: str, keys: dict[str, Any]) -> dict[str, Any]:
    config = json.loads((FAMILIES / checkpoint / "config.json").read_text()) | keys
    return {key: value for key, value in config.items() if value is not ...}


def longrope(**keys: Any) -> dict[str, Any]:
    rope = (
        json.loads((FAMILIES / "phi3_longrope_short" / "config.json").read_text())["rope_parameters"] | keys
    )
    return {"rope_parameters": {key: value for key, value in rope.items() if value is not ...}}


def partial(factor: Any) -> dict[str, Any]:
    return {"rope_parameters": DEFAULT | {"partial_rotary_factor": factor}}


# (checkpoint, changes, what the message names)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # Experts.
    ("qwen3_moe", {"num_experts_per_tok": 6}, "num_experts_per_tok=6"),
    ("olmoe", {"num_experts_per_tok": 6}, "num_experts_per_tok=6"),
    ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok=5"),
    ("gpt_oss", {"num_experts_per_tok": 5}, "num_experts_per_tok=5"),
    ("mixtral", {"num_experts_per_tok": 0}, "num_experts_per_tok=0"),
    ("mixtral", {"num_local_experts": 0}, "num_local_experts=0"),
    ("mixtral", {"num_local_experts": 2.0}, "num_local_experts=2.0"),
    ("mixtral", {"num_experts": 5}, "num_experts=5"),
    ("qwen3_moe", {"num_experts": 4, "num_local_experts": 5}, "num_local_experts=5"),
    ("qwen3_moe", {"norm_topk_prob": "yes"}, "norm_topk_prob"),
    ("qwen3_moe", {"moe_intermediate_size": 0}, "moe_intermediate_size"),
    ("qwen3_moe", {"mlp_only_layers": [2]}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": [-1]}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": [True]}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": 0}, "mlp_only_layers"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
    ("gpt_oss", {"swiglu_limit": 6.0}, "swiglu_limit"),
    ("gpt_oss", {"swiglu_alpha": 1.0}, "swiglu_alpha"),
    # Layers and windows.
    ("gemma2", {"layer_types": [SLIDING]}, "layer_types"),
    ("gemma2", {"layer_types": []}, "layer_types"),
    ("gemma2", {"layer_types": SLIDING}, "layer_types"),
    ("gemma3", {"layer_types": [SLIDING, SLIDING, "chunked_attention"]}, "chunked_attention"),
    ("gpt_oss", {"layer_types": [SLIDING, 3]}, "layer_types"),
    ("olmo3", {"layer_types": [[], FULL, FULL, FULL]}, "layer_types"),
    ("gemma2", {"sliding_window": None}, "sliding_window"),
    ("gpt_oss", {"sliding_window": None}, "sliding_window"),
    ("olmo3", {"sliding_window": 0}, "sliding_window=0"),
    ("olmo2", {"sliding_window": 12}, "sliding_window"),
    ("granite", {"sliding_window": 12}, "sliding_window"),
    ("mixtral_window", {"layer_types": [FULL, FULL]}, "layer_types"),
    ("qwen3_moe_window", {"layer_types": [SLIDING, FULL]}, "layer_types"),
    ("gemma3", {"layer_types": ..., "sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("smollm3", {"no_rope_layers": [1, 1, 0]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": []}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 2]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, None]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": ..., "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
    ("smollm3", {"layer_types": [SLIDING] * 4}, "sliding"),
    ("smollm3", {"layer_types": [FULL] * 3}, "layer_types"),
    ("smollm3_window", {"layer_types": [FULL, "linear_attention", FULL]}, "linear_attention"),
    # Numbers that multiply or divide.
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping=0"),
    ("gemma2", {"attn_logit_softcapping": -50.0}, "attn_logit_softcapping"),
    ("gemma2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping"),
    ("gemma3", {"final_logit_softcapping": -1}, "final_logit_softcapping"),
    ("gemma2", {"final_logit_softcapping": "30"}, "final_logit_softcapping"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("gemma3", {"query_pre_attn_scalar": math.nan}, "query_pre_attn_scalar"),
    *((("granite", {key: value}, key))
      for key in ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
      for value in (0, -1.0, math.nan, math.inf, "0.5", True, [1.0])),
    # Rope.
    ("phi3", partial(0.375), "partial_rotary_factor=0.375"),  # 3 of 8
    ("phi3", partial(0.1), "partial_rotary_factor=0.1"),
    ("phi3", partial(1.5), "partial_rotary_factor=1.5"),
    ("phi3", partial(0), "partial_rotary_factor=0"),
    ("phi3", partial("0.5"), "partial_rotary_factor"),
    ("phi3_longrope_short", longrope(short_factor=[1.0] * 3), "short_factor"),
    ("phi3_longrope_short", longrope(long_factor=[1.0] * 5), "long_factor"),
    ("phi3_longrope_short", longrope(long_factor=...), "long_factor"),
    ("phi3_longrope_short", longrope(short_factor=[1.0, 1.0, 0.0, 1.0]), "short_factor"),
    ("phi3_longrope_short", longrope(long_factor=[1.0, 1.0, "2", 1.0]), "long_factor"),
    ("phi3_longrope_short", longrope(short_factor=1.0), "short_factor"),
    ("phi3_longrope_partial", longrope(partial_rotary_factor=0.75), "short_factor"),  # 4 divisors for 3 pairs
    ("gemma3", {"rope_parameters": DEFAULT}, "full_attention"),
    ("gemma3", {"rope_parameters": {FULL: DEFAULT, "chunked_attention": DEFAULT}}, "chunked_attention"),
    ("gemma3", {"rope_local_base_freq": 0}, "rope_local_base_freq"),
    ("olmo3", {"rope_parameters": {FULL: DEFAULT, SLIDING: []}}, "sliding_attention"),
    ("gemma2", {"rope_parameters": {FULL: DEFAULT, SLIDING: DEFAULT}}, "full_attention"),
    # The MLP, and GPT-2's own.
    ("gemma2", {"hidden_activation": "quick_gelu"}, "quick_gelu"),
    ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh'"),
    ("gpt2", {"n_inner": 0}, "n_inner=0"),
    ("gpt2", {"n_embd": ...}, "n_embd"),
    ("gpt2", {"hidden_size": 32}, "hidden_size=32"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": 1}, "scale_attn_by_inverse_layer_idx"),
]  # fmt: skip

# The nearest configs that are right.
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_moe", {"num_experts_per_tok": 5}),
    ("qwen3_moe", {"num_experts": 5, "mlp_only_layers": None}),
    ("mixtral", {"num_experts": 4}),
    ("olmoe", {"clip_qkv": None, "num_local_experts": 5}),
    ("gemma2", {"layer_types": [FULL, FULL], "sliding_window": None}),
    ("gemma2", {"use_bidirectional_attention": False, "sliding_window_size": 4096, "hidden_act": "x"}),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 0, 1]}),  # transformers: at least one for each layer
    ("smollm3", {"no_rope_layers": [True, True, True, False], "layer_types": [FULL] * 4}),
    ("granite", {"attention_multiplier": 0.0078125}),
    ("phi3", partial(0.25)),
    ("phi3", partial(0.5625)),  # 4.5 of 8 numbers: transformers rotates 4
    ("gpt2", {"n_inner": None, "hidden_size": 16, "reorder_and_upcast_attn": True}),
    ("gpt2", {"n_inner": ...}),
    ("gemma3", {"rope_parameters": {FULL: DEFAULT}}),
]


@pytest.mark.parametrize(("checkpoint", "keys", "named"), REFUSED, ids=lambda v: str(v)[:60])
def test_a_config_that_does_not_fit_is_refused(checkpoint: str, keys: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        parse_config(changed(checkpoint, keys))
    assert named in str(refusal.value)


@pytest.mark.parametrize("kind", [FULL, SLIDING])
def test_any_value_at_any_key_of_a_rope_by_kind_of_layer(kind: str) -> None:
    """A config or a typed error, never another one."""
    ropes = changed("olmo3_yarn", {})["rope_parameters"]
    accepted, refused = 0, 0
    for key in (*ropes[FULL], "truncate", "mscale", "extra"):
        for value in hostile.VALUES:
            nested = ropes | {kind: ropes[FULL] | {key: value}}
            try:
                parse_config(changed("olmo3_yarn", {"rope_parameters": nested}))
                accepted += 1
            except UnsupportedModel:
                refused += 1
    assert accepted and refused


def test_null_is_the_family_s_default_of_a_text_and_of_a_number() -> None:
    """Gemma's configs of other tools have a null activation: silu would give wrong text."""
    assert parse_config(changed("gemma2", {"hidden_activation": None})).activation == "gelu_tanh"
    assert parse_config(changed("olmo2", {"rms_norm_eps": None})).norm_eps == 1e-5


@pytest.mark.parametrize(("checkpoint", "keys"), ACCEPTED, ids=lambda v: str(v)[:60])
def test_control_the_nearest_sound_config_is_read(checkpoint: str, keys: dict[str, Any]) -> None:
    parse_config(changed(checkpoint, keys))


# ---- tensors --------------------------------------------------------------------------------------


def load_with(tmp_path: Path, checkpoint: str, tensors: dict[str, Any], **keys: Any) -> LLM:
    """The checkpoint with other tensors: None removes one."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = load_file(FAMILIES / checkpoint / "model.safetensors") | tensors
    save_file({name: t for name, t in weights.items() if t is not None}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(changed(checkpoint, keys)))
    return LLM(folder, dtype="float32", backend="reference", device="cpu")


L0 = "model.layers.0."
MISSING = [
    ("gpt_oss", L0 + "self_attn.sinks"),
    ("gpt_oss", L0 + "mlp.experts.gate_up_proj"),
    ("gpt_oss", L0 + "mlp.experts.down_proj_bias"),
    ("gpt_oss", L0 + "mlp.router.bias"),
    ("mixtral", L0 + "block_sparse_moe.experts.3.w2.weight"),
    ("mixtral", L0 + "block_sparse_moe.gate.weight"),
    ("qwen3_moe", L0 + "mlp.experts.0.up_proj.weight"),
    ("qwen3_moe_mlp_only", L0 + "mlp.gate_proj.weight"),
    ("olmo2", L0 + "self_attn.q_norm.weight"),
    ("gemma2", L0 + "pre_feedforward_layernorm.weight"),
    ("phi3", L0 + "self_attn.qkv_proj.weight"),
    ("gpt2", "transformer.h.1.ln_2.bias"),
    ("gpt2", "transformer.ln_f.bias"),
    ("gpt2", "transformer.wpe.weight"),
    ("gpt2", "transformer.h.0.attn.c_attn.bias"),
]
OTHER_SHAPE: list[tuple[str, str, tuple[int, ...]]] = [
    ("gpt_oss", L0 + "self_attn.sinks", (2,)),
    ("gpt_oss", L0 + "mlp.experts.gate_up_proj", (3, 16, 32)),
    ("gpt_oss", L0 + "mlp.experts.gate_up_proj", (4, 32, 16)),
    ("gpt_oss", L0 + "mlp.experts.gate_up_proj_bias", (4, 16)),
    ("mixtral", L0 + "block_sparse_moe.experts.1.w1.weight", (15, 16)),
    ("mixtral", L0 + "block_sparse_moe.gate.weight", (5, 16)),
    ("qwen3_moe", L0 + "mlp.experts.1.down_proj.weight", (8, 16)),
    ("olmo2", L0 + "self_attn.k_norm.weight", (8,)),
    ("phi3", L0 + "self_attn.qkv_proj.weight", (16, 16)),
    ("gpt2", "transformer.h.0.attn.c_attn.weight", (48, 16)),
    ("gpt2", "transformer.wpe.weight", (63, 16)),
]


@pytest.mark.parametrize(("checkpoint", "name"), MISSING, ids=lambda v: v.split(".", 2)[-1])
def test_a_missing_tensor_is_named(checkpoint: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"1 missing: {name}"):
        load_with(tmp_path, checkpoint, {name: None})


@pytest.mark.parametrize(("checkpoint", "name", "shape"), OTHER_SHAPE, ids=lambda v: str(v)[-40:])
def test_a_tensor_of_another_shape_is_named(
    checkpoint: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="of another shape") as refusal:
        load_with(tmp_path, checkpoint, {name: torch.zeros(shape)})
    assert name in str(refusal.value) and str(list(shape)) in str(refusal.value)


@pytest.mark.parametrize(
    ("checkpoint", "keys", "named"),
    [
        ("mixtral", {"num_local_experts": 3}, "experts.3.w1.weight"),
        ("mixtral", {"num_local_experts": 5}, "experts.4.w1.weight"),
        ("qwen3_moe", {"num_local_experts": 6}, "experts.5.gate_proj.weight"),
        ("gpt_oss", {"num_local_experts": 3}, "mlp.experts.gate_up_proj"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "model.layers.1.mlp"),
        ("olmo2", {"attention_bias": True}, "q_proj.bias"),
        ("gpt2", {"n_inner": 32}, "c_fc"),
        ("gpt2", {"n_positions": 128}, "wpe"),
    ],
    ids=str,
)
def test_weights_of_another_config_are_named(
    checkpoint: str, keys: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError) as refusal:
        load_with(tmp_path, checkpoint, {}, **keys)
    assert named in str(refusal.value)


def test_an_expert_of_another_layout_is_named(tmp_path: Path) -> None:
    """A part of an MXFP4 checkpoint without its quantization_config."""
    blocks = {L0 + "mlp.experts.gate_up_proj_blocks": torch.zeros(4, 32, 1, 16, dtype=torch.uint8)}
    with pytest.raises(WeightsError, match="gate_up_proj_blocks"):
        load_with(tmp_path, "gpt_oss", blocks | {L0 + "mlp.experts.gate_up_proj": None})


def test_control_the_same_tensors_load(tmp_path: Path) -> None:
    for checkpoint in ("gpt_oss", "mixtral", "gpt2"):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        load_with(tmp_path, checkpoint, {})
