"""From a Hugging Face config.json to a `ModelConfig`: the keys that each family reads.

If a key is ignored that changes the forward pass, the model still writes fluent text, but wrong text.
`config_keys.py` decides about every key that no family reads.

Both formats of configs are read: `rope_theta` + `rope_scaling` + `torch_dtype`, and `rope_parameters` +
`dtype` of transformers 5. Rope is read in `rope_config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.config import LayerSpec, ModelConfig, shown
from minillm.config.files import exists, read_object
from minillm.errors import ModelNotFound, UnsupportedModel
from minillm.model.config_keys import refuse_unknown
from minillm.model.config_reader import ConfigReader
from minillm.model.rope_config import ROPE_KEYS, read_rope

_SHAPE = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim rms_norm_eps max_position_embeddings tie_word_embeddings "
    "hidden_act layer_types dtype torch_dtype eos_token_id bos_token_id".split()
)
MAX_LAYERS = 4096  # an order of magnitude above any published model; each is a Python object
MAX_WINDOW = (1 << 31) - 1  # tokens; kernels count positions in 32 bits
_WINDOW_BY_LAYER = frozenset("use_sliding_window sliding_window max_window_layers".split())


@dataclass(frozen=True)
class Family:
    """One family: the keys it reads beyond the common ones, and its defaults.

    `qkv_bias`, `o_bias`: True, False, or "attention_bias" if that key of the config decides.
    `default_kv_heads` None: as many as query heads. `default_head_dim` None: hidden_size //
    num_attention_heads.
    """

    architecture: str
    reads: frozenset[str]
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    qk_norm: bool = False
    default_kv_heads: int | None = None
    default_head_dim: int | None = None
    default_max_positions: int = 2048


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        reads=frozenset({"attention_bias", "mlp_bias"}),
        qkv_bias="attention_bias",
        o_bias="attention_bias",
    ),
    "mistral": Family(
        "MistralForCausalLM",
        reads=frozenset({"sliding_window"}),
        default_kv_heads=8,
        default_max_positions=131072,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        reads=_WINDOW_BY_LAYER,
        qkv_bias=True,
        default_kv_heads=32,
        default_max_positions=32768,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        reads=_WINDOW_BY_LAYER | {"attention_bias"},
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        default_kv_heads=32,
        default_head_dim=128,
        default_max_positions=32768,
    ),
}


def load_model_config(folder: Path, allowed_keys: Sequence[str] = ()) -> ModelConfig:
    """Read `folder/config.json`.

    Args:
        allowed_keys: unknown keys that the user takes for harmless.

    Raises:
        ModelNotFound: there is no config.json.
        UnreadableFile: the file cannot be read.
        UnsupportedModel: it is not JSON, or needs something that is not implemented.
    """
    path = folder / "config.json"
    if not exists(path):
        raise ModelNotFound(f"{folder} has no config.json", "a model is a folder in Hugging Face layout")
    return parse_config(read_object(path, UnsupportedModel), allowed_keys)


def parse_config(raw: Mapping[str, Any], allowed_keys: Sequence[str] = ()) -> ModelConfig:
    """The model config of a config.json's content. Every key is read, harmless, allowed, or refused by name.

    Raises:
        UnsupportedModel: the message names the architecture, key or value, and what is supported.
    """
    name, family = _family_of(raw)
    cfg = ConfigReader(raw)
    allowed = refuse_unknown(raw, name, _SHAPE | family.reads | ROPE_KEYS, allowed_keys)
    cfg.sources["allowed_keys"] = "allowed by the user"
    heads = cfg.integer("num_attention_heads")
    hidden = cfg.integer("hidden_size")
    layers = cfg.integer("num_hidden_layers", maximum=MAX_LAYERS)
    head_dim = cfg.integer("head_dim", family.default_head_dim or hidden // heads)
    kv_heads = cfg.integer("num_key_value_heads", _default_kv_heads(raw, family, heads))
    _check_heads(heads, kv_heads, head_dim)
    act = cfg.text("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UnsupportedModel(
            f"activation hidden_act={shown(act)} is not supported", "supported: silu (swish)"
        )
    max_positions = cfg.integer("max_position_embeddings", family.default_max_positions)
    return ModelConfig(
        family=name,
        vocab_size=cfg.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=cfg.integer("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=cfg.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_positions,
        rope=read_rope(cfg, max_positions),
        tie_word_embeddings=cfg.boolean("tie_word_embeddings", False),
        qkv_bias=_bias(cfg, "qkv_bias", family.qkv_bias),
        o_bias=_bias(cfg, "o_bias", family.o_bias),
        mlp_bias=cfg.boolean("mlp_bias", False) if "mlp_bias" in family.reads else False,
        qk_norm=family.qk_norm,
        layers=tuple(LayerSpec(window, scale=head_dim**-0.5) for window in _layer_windows(cfg, name, layers)),
        dtype=_dtype(cfg),
        eos_token_ids=cfg.token_ids("eos_token_id"),
        bos_token_id=(cfg.token_ids("bos_token_id") or (None,))[0],
        allowed_keys=allowed,
        sources=cfg.sources,
    )


def _family_of(raw: Mapping[str, Any]) -> tuple[str, Family]:
    by_architecture = {family.architecture: name for name, family in FAMILIES.items()}
    architectures = raw.get("architectures") or []
    supported = f"supported: {', '.join(sorted(by_architecture))}"
    if not isinstance(architectures, list) or len(architectures) > 1:
        raise UnsupportedModel(f"architectures={shown(architectures)} must name one architecture", supported)
    for architecture in architectures:
        if not isinstance(architecture, str) or architecture not in by_architecture:
            raise UnsupportedModel(f"architecture {shown(architecture)} is not supported", supported)
    model_type = raw.get("model_type")
    name = by_architecture[architectures[0]] if architectures else model_type
    if not isinstance(name, str) or name not in FAMILIES or model_type not in (None, name):
        raise UnsupportedModel(f"model_type {shown(model_type)} is not supported here", supported)
    return name, FAMILIES[name]


def _default_kv_heads(raw: Mapping[str, Any], family: Family, heads: int) -> int:
    """An explicit null means as many kv heads as query heads; a missing key means the family's default."""
    return heads if "num_key_value_heads" in raw else family.default_kv_heads or heads


def _check_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    if heads % kv_heads:
        raise UnsupportedModel(
            f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}",
            "grouped-query attention needs equal groups",
        )
    if head_dim % 2:
        raise UnsupportedModel(f"head_dim={head_dim} is odd", "rope rotates pairs: it must be even")


def _bias(cfg: ConfigReader, field: str, rule: bool | str) -> bool:
    if isinstance(rule, str):
        value = cfg.boolean(rule, False)
        cfg.sources[field] = cfg.sources[rule]
        return value
    cfg.sources[field] = "family"
    return rule


def _dtype(cfg: ConfigReader) -> str | None:
    """`dtype`, or its older name `torch_dtype`, without the prefix "torch."."""
    value = cfg.optional_text("dtype") or cfg.optional_text("torch_dtype")
    return value.removeprefix("torch.") if value else None


def _layer_windows(cfg: ConfigReader, name: str, layers: int) -> tuple[int | None, ...]:
    """Sliding window of every layer, None for full attention."""
    has_window = "sliding_window" in FAMILIES[name].reads
    window = cfg.optional_integer("sliding_window", 4096, maximum=MAX_WINDOW) if has_window else None
    first = 0
    if "use_sliding_window" in FAMILIES[name].reads:
        if not cfg.boolean("use_sliding_window", False):
            window = None
        first = cfg.integer("max_window_layers", 28, minimum=0)
    by_depth = tuple(window if i >= first else None for i in range(layers))
    if cfg.raw.get("layer_types") is None:
        return by_depth
    by_kind = _windows_by_kind(cfg.raw["layer_types"], window, layers)
    if by_kind != by_depth and "use_sliding_window" not in FAMILIES[name].reads:
        raise UnsupportedModel(
            f"layer_types={shown(cfg.raw['layer_types'])} is not supported for {name}",
            "all its layers must be of one kind",
        )
    return by_kind


def _windows_by_kind(kinds: Any, window: int | None, layers: int) -> tuple[int | None, ...]:
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise UnsupportedModel(f"layer_types must list {layers} kinds", "one for each layer")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(
                f"layer_types names {shown(kind)}", "supported: full_attention, sliding_attention"
            )
    if window is None and "sliding_attention" in kinds:
        raise UnsupportedModel(
            "layer_types has sliding_attention, but no sliding window is on",
            "set use_sliding_window and sliding_window",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
