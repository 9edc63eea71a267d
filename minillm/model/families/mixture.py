"""Families with experts: Qwen3-MoE, OLMoE, Mixtral, gpt-oss. They differ in how scores become weights.

    Mixtral      softmax over all experts, the best 2, scaled to sum to 1
    Qwen3-MoE    the same with the best 8, where `norm_topk_prob` is true
    OLMoE        softmax over all experts, the best 8, as they are
    gpt-oss      the best 4 scores, softmax over these: the same numbers as Mixtral's rule

gpt-oss has more of its own: biases everywhere, a sink for each head, a clamped gate, YaRN by default.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import ExpertSpec, ModelConfig, shown
from minillm.errors import UnsupportedModel
from minillm.model.config_reader import ConfigReader
from minillm.model.families.family import LLAMA_PARTS, CheckpointNames, Family
from minillm.model.families.llama import MISTRAL, QWEN3
from minillm.model.rope_config import RopeRules

MAX_EXPERTS = 4096


def _names(router: str, gate: str, up: str, down: str) -> CheckpointNames:
    return CheckpointNames(
        {**LLAMA_PARTS, "router": router, "expert_gate_up": (gate, up), "expert_down": down}
    )


_QWEN_NAMES = _names(
    "mlp.gate", "mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj", "mlp.experts.{e}.down_proj"
)
_MIXTRAL_NAMES = _names(
    "block_sparse_moe.gate",
    "block_sparse_moe.experts.{e}.w1",
    "block_sparse_moe.experts.{e}.w3",
    "block_sparse_moe.experts.{e}.w2",
)
_GPT_OSS_NAMES = CheckpointNames(
    {
        **LLAMA_PARTS,
        "sinks": "self_attn.sinks",
        "router": "mlp.router",
        "expert_gate_up.weight": "mlp.experts.gate_up_proj",
        "expert_gate_up.bias": "mlp.experts.gate_up_proj_bias",
        "expert_down.weight": "mlp.experts.down_proj",
        "expert_down.bias": "mlp.experts.down_proj_bias",
    },
    interleaved=True,
)


def read_experts(cfg: ConfigReader, count_key: str, size: int, renormalize: bool) -> ExpertSpec:
    """The experts of a layer.

    Raises:
        UnsupportedModel: a token would use more experts than there are.
    """
    count = cfg.integer(count_key, maximum=MAX_EXPERTS)
    per_token = cfg.integer("num_experts_per_tok")
    if per_token > count:
        raise UnsupportedModel(
            f"num_experts_per_tok={per_token} is more than {count_key}={count}", "a token uses some of them"
        )
    return ExpertSpec(count, per_token, size, renormalize)


def _in_all_layers(base: ModelConfig, experts: ExpertSpec) -> ModelConfig:
    return replace(base, layers=tuple(replace(layer, experts=experts) for layer in base.layers))


def _qwen3_moe(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    """Layers in `mlp_only_layers`, and those that `decoder_sparse_step` leaves out, have one MLP."""
    size = cfg.integer("moe_intermediate_size")
    experts = read_experts(cfg, "num_experts", size, cfg.boolean("norm_topk_prob", False))
    step, dense = cfg.integer("decoder_sparse_step", 1), cfg.raw.get("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(type(i) is int and 0 <= i < len(base.layers) for i in dense):
        raise UnsupportedModel(f"mlp_only_layers={shown(dense)} must list numbers of layers")
    layers = (
        replace(layer, experts=None if i in dense or (i + 1) % step else experts)
        for i, layer in enumerate(base.layers)
    )
    return replace(base, layers=tuple(layers))


QWEN3_MOE = replace(
    QWEN3,
    architecture="Qwen3MoeForCausalLM",
    reads=frozenset(
        "attention_bias use_sliding_window sliding_window num_experts num_experts_per_tok "
        "moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers".split()
    ),
    aliases={"num_local_experts": "num_experts"},
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    names=_QWEN_NAMES,
    windows="switched",  # transformers does not read max_window_layers here
    differs=_qwen3_moe,
)


def _olmoe(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    renormalize = cfg.boolean("norm_topk_prob", False)
    return _in_all_layers(base, read_experts(cfg, "num_experts", base.intermediate_size, renormalize))


OLMOE = Family(
    "OlmoeForCausalLM",
    reads=frozenset("attention_bias num_experts num_experts_per_tok norm_topk_prob".split()),
    aliases={"num_local_experts": "num_experts"},
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    names=_QWEN_NAMES,
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm="wide",
    differs=_olmoe,
)


def _mixtral(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    return _in_all_layers(base, read_experts(cfg, "num_local_experts", base.intermediate_size, True))


MIXTRAL = replace(
    MISTRAL,
    architecture="MixtralForCausalLM",
    reads=MISTRAL.reads | {"num_local_experts", "num_experts_per_tok"},
    aliases={"num_experts": "num_local_experts"},
    defaults={
        **MISTRAL.defaults,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    names=_MIXTRAL_NAMES,
    rope=RopeRules(theta=1000000.0),
    differs=_mixtral,
)


def _gpt_oss(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    for key, only in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if cfg.number(key, only) != only:
            raise UnsupportedModel(f"{key}={shown(cfg.raw[key])} is not supported", f"only {only} is")
    experts = read_experts(cfg, "num_local_experts", base.intermediate_size, True)
    layers = tuple(replace(layer, experts=experts, sinks=True) for layer in base.layers)
    return replace(base, activation="swiglu_clamped", expert_bias=True, layers=layers)


GPT_OSS = Family(
    "GptOssForCausalLM",
    reads=frozenset(
        "attention_bias sliding_window num_local_experts num_experts_per_tok swiglu_alpha "
        "swiglu_limit".split()
    ),
    aliases={"num_experts": "num_local_experts"},
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "attention_bias": True,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
    },
    names=_GPT_OSS_NAMES,
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    rope=RopeRules(
        theta=150000.0,
        absent={
            "rope_type": "yarn",
            "factor": 32.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    ),
    windows=2,
    differs=_gpt_oss,
)
