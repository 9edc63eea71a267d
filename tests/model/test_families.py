"""Contract C1: fp32 logits equal those of Hugging Face transformers; unsupported configs are refused by name.

The checkpoints in `tests/model/families` are tiny and random, one for each feature of a config.json that
changes the logits. `scripts/dev/make_family_checkpoints.py` wrote them together with transformers' logits.
Each has two equivalent configs, in the formats of transformers 5 (`config.json`) and 4 (`config_old.json`);
the older format cannot say everything.
`control` has the logits of the nearest of several mistakes: the feature switched off, a window off by one,
a missing bias. They must lie far outside the tolerance, or the comparison would prove nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minillm import LLM
from minillm.config import Backend
from minillm.errors import UnsupportedModel
from minillm.toolchain.compiler import find_compiler

FAMILIES = Path(__file__).parent / "families"
TOLERANCE = 2e-4  # relative to max |logits|
SENSITIVITY = 100  # the control is at least this many tolerances away

CASES = sorted(config.relative_to(FAMILIES) for config in FAMILIES.glob("*/config*.json"))
EXPECTED = {
    "llama_mha", "llama_gqa_head_dim", "llama_attention_bias", "llama_mlp_bias", "llama_tied",
    "llama_sharded", "llama_rope_linear", "llama_rope_llama3", "llama_rope_yarn", "llama_rope_dynamic",
    "tinyllama_like", "smollm2_like", "mistral_sliding_window", "mistral_window_null", "mistral_head_dim",
    "qwen2", "qwen2_max_window_layers", "qwen2_layer_types", "qwen2_tied", "qwen2_yarn",
    "qwen3", "qwen3_attention_bias", "qwen3_sliding_window",
    "smollm3", "smollm3_window", "smollm3_layer_types", "olmo2", "olmo2_gqa", "olmo3", "olmo3_yarn",
    "olmo3_theta", "gemma2", "gemma2_default_caps", "gemma3", "gemma3_six", "gemma3_linear",
    "gemma3_multimodal", "gemma3_multimodal_v5_names", "phi3", "phi3_partial", "phi3_longrope_short",
    "phi3_longrope_long", "phi3_longrope_partial", "phi3_longrope_partial_long", "granite",
    "granite_defaults", "gpt2", "gpt2_published", "gpt2_by_depth", "qwen3_moe",
    "qwen3_moe_not_renormalized", "qwen3_moe_mlp_only", "qwen3_moe_sparse_step", "qwen3_moe_window",
    "olmoe", "olmoe_renormalized", "mixtral", "mixtral_window", "gpt_oss", "gpt_oss_default_yarn",
    "gpt_oss_bfloat16",
}  # fmt: skip
NEEDS_COMPILER = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
ONLY_NEW = {"olmo3_two_thetas", "gpt_oss_default_rope"}  # the older format has no key for it


def copy_with(folder: Path, target: Path, config: dict[str, Any]) -> Path:
    """A copy of the checkpoint `folder` with another config.json, without the reference."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("config*.json", "reference.npz"))
    (target / "config.json").write_text(json.dumps(config))
    return target


def load(folder: Path, backend: Backend = "reference") -> LLM:
    return LLM(model=str(folder), dtype="float32", backend=backend, device="cpu")


def distance(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference, in tolerances."""
    return float((logits - reference).abs().max() / (TOLERANCE * reference.abs().max()))


# ---- the right tokens -----------------------------------------------------------------------------


def test_no_variant_is_missing() -> None:
    """An empty or incomplete data folder must fail, not pass."""
    found = {case.parent.name for case in CASES}
    assert found >= EXPECTED | ONLY_NEW
    assert len(CASES) == 2 * len(found) - len(ONLY_NEW), "every other variant has both configs"


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=NEEDS_COMPILER)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_equal_transformers(case: Path, backend: Backend, tmp_path: Path) -> None:
    source = FAMILIES / case.parent
    reference = np.load(source / "reference.npz", allow_pickle=False)
    expected = torch.from_numpy(reference["logits"])
    llm = load(copy_with(source, tmp_path / "model", json.loads((FAMILIES / case).read_text())), backend)

    logits = llm.logits(reference["token_ids"].tolist())

    assert logits.dtype == torch.float32
    assert logits.shape == expected.shape
    assert distance(logits, expected) <= 1
    near_miss = torch.from_numpy(reference["control"]).float()
    assert distance(near_miss, logits) > SENSITIVITY, str(reference["control_name"])


# ---- nothing silently wrong -----------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 100.0}
LAYER_KINDS = ["full_attention", "chunked_attention", "full_attention"]
PER_LAYER_ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
LONG = {"short_factor": [1.0] * 3, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}

# (checkpoint, keys that replace those in its config.json, the name the refusal must mention)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama_mha", {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, "gemma"),
    ("llama_mha", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("llama_mha", {"architectures": ["MixtralForCausalLM"], "model_type": "llama"}, "model_type"),
    ("llama_mha", {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe"}, "Qwen2Moe"),
    ("llama_mha", {"hidden_act": "quick_gelu"}, "quick_gelu"),
    ("llama_mha", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG}}, "short_factor"),
    ("llama_mha", {"rope_scaling": {"type": "longrope"}}, "short_factor"),
    ("llama_mha", {"rope_scaling": {"rope_type": "mrope", "mrope_section": [2, 3, 3]}}, "mrope"),
    ("llama_mha", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ("llama_mha", {"rope_parameters": YARN | {"attn_temperature": 2.0}}, "attn_temperature"),
    ("llama_mha", {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama_mha", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama_mha", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    ("llama_mha", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    ("llama_mha", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("llama_mha", {"residual_multiplier": 0.22}, "residual_multiplier"),
    ("llama_mha", {"clip_qkv": 8.0}, "clip_qkv"),
    ("llama_mha", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("llama_mha", {"num_local_experts": 8}, "num_local_experts"),
    ("llama_mha", {"is_causal": False}, "is_causal"),
    ("llama_mha", {"a_key_nobody_knows": 1}, "a_key_nobody_knows"),
    ("llama_mha", {"sliding_window": 12}, "sliding_window"),
    ("smollm2_like", {"rope_interleaved": True}, "rope_interleaved"),
    ("mistral_window_null", {"attention_bias": True}, "attention_bias"),
    ("mistral_window_null", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("qwen2_layer_types", {"layer_types": ["full_attention"] * 4}, "layer_types"),
    ("qwen2_layer_types", {"layer_types": LAYER_KINDS}, "chunked_attention"),
    ("qwen2_layer_types", {"use_sliding_window": False}, "sliding"),
    ("qwen2", {"mlp_bias": True}, "mlp_bias"),
    ("qwen2", {"use_mrope": True}, "use_mrope"),
    ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config"),
    ("qwen3", {"rope_parameters": PER_LAYER_ROPE}, "full_attention"),
]  # fmt: skip

# Keys of published configs that do not change the logits: refusing them would refuse real models.
INERT: list[tuple[str, dict[str, Any]]] = [
    ("llama_mha", {"pretraining_tp": 1, "use_cache": False, "attention_dropout": 0.1, "_name_or_path": "a"}),
    ("llama_mha", {"unsloth_fixed": True, "transformers_version": "4.31.0.dev0", "rope_scaling": None}),
    ("llama_mha", {"partial_rotary_factor": 1.0, "hidden_act": "silu", "initializer_range": 0.5}),
    ("smollm2_like", {"rope_interleaved": False, "is_llama_config": True}),
    ("mistral_window_null", {"attention_bias": False}),
    ("qwen2", {"use_mrope": False, "max_window_layers": 70}),
    ("qwen2_layer_types", {"max_window_layers": 3}),
]


@pytest.mark.parametrize(("folder", "keys", "named"), REFUSED, ids=[f"{f}-{n}" for f, _, n in REFUSED])
def test_unsupported_config_is_refused_by_name(
    folder: str, keys: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """The message names the unsupported key or value."""
    config = json.loads((FAMILIES / folder / "config.json").read_text()) | keys
    with pytest.raises(UnsupportedModel) as refusal:
        load(copy_with(FAMILIES / folder, tmp_path / "model", config))
    assert named.lower() in str(refusal.value).lower()


@pytest.mark.parametrize(("folder", "keys"), INERT, ids=[f"{f}-{','.join(k)}" for f, k in INERT])
def test_inert_keys_change_nothing(folder: str, keys: dict[str, Any], tmp_path: Path) -> None:
    """The control of the refusals: the same checkpoints load if the extra key has no effect."""
    config = json.loads((FAMILIES / folder / "config.json").read_text()) | keys
    reference = np.load(FAMILIES / folder / "reference.npz", allow_pickle=False)
    llm = load(copy_with(FAMILIES / folder, tmp_path / "model", config))
    assert distance(llm.logits(reference["token_ids"].tolist()), torch.from_numpy(reference["logits"])) <= 1
