"""From a Hugging Face config.json to a `ModelConfig`: the keys that each family reads.

If a key is ignored that changes the forward pass, the model still writes fluent text, but wrong text.
`config_keys.py` decides about every key that no family reads.

Both formats of configs are read: `rope_theta` + `rope_scaling` + `torch_dtype`, and `rope_parameters` +
`dtype` of transformers 5. Rope is read in `rope_config.py`, the layers' windows in `windows.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minillm.config import Activation, LayerSpec, ModelConfig, RopeConfig, shown
from minillm.config.files import exists, read_object
from minillm.errors import ModelNotFound, UnsupportedModel
from minillm.model.config_keys import refuse_unknown
from minillm.model.config_reader import ConfigReader
from minillm.model.families.family import Family
from minillm.model.families.table import FAMILIES
from minillm.model.families.windows import layer_windows
from minillm.model.quantization.config import stored_quantization
from minillm.model.multimodal import refuse_other_inputs, text_config
from minillm.model.rope_config import ROPE_KEYS, read_rope, read_two_ropes

_COMMON = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim rms_norm_eps max_position_embeddings tie_word_embeddings "
    "hidden_act layer_types dtype torch_dtype eos_token_id bos_token_id quantization_config".split()
)
MAX_LAYERS = 4096  # an order of magnitude above any published model; each is a Python object
# transformers' names of activations, and ours.
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
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
    text = text_config(raw, allowed_keys)
    if text is not None:
        if text.get("quantization_config") is not None:
            raise UnsupportedModel("a quantized text model beside a vision part is not supported")
        return replace(parse_config(text, allowed_keys), multimodal=True)
    if raw.get("quantization_config") is not None:
        stored_quantization(raw["quantization_config"])  # the loader reads it again; here it may refuse
    name, family = _family_of(raw)
    read = {family.spelled.get(key, key) for key in _COMMON} | family.reads | ROPE_KEYS
    allowed = refuse_unknown(raw, name, read | family.unused | family.aliases.keys(), allowed_keys)
    cfg = ConfigReader(_by_common_names(raw, family), defaults=family.defaults, spelled=family.spelled)
    cfg.sources["allowed_keys"] = "allowed by the user"
    return family.differs(cfg, _base(cfg, name, family, allowed))


def _by_common_names(raw: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The config under the names that this file uses, without the keys that the family does not read."""
    common = {other: key for key, other in family.spelled.items()}
    left_out = family.unused | family.spelled.keys()
    named = {common.get(key, key): value for key, value in raw.items() if key not in left_out}
    for alias, key in family.aliases.items():
        value = raw.get(alias)
        if value is not None and raw.get(key) not in (None, value):
            raise UnsupportedModel(
                f"{alias}={shown(value)} and {key}={shown(raw[key])} must agree", "they are one key"
            )
        if value is not None:
            named[common.get(key, key)] = value
    return named


def _base(cfg: ConfigReader, name: str, family: Family, allowed: tuple[str, ...]) -> ModelConfig:
    """The config as it would be for Llama, with the family's windows, biases and rope."""
    heads = cfg.integer("num_attention_heads")
    hidden = cfg.integer("hidden_size")
    layers = cfg.integer("num_hidden_layers", maximum=MAX_LAYERS)
    head_dim = cfg.integer("head_dim", hidden // heads)
    kv_heads = cfg.integer("num_key_value_heads", heads)
    _check_heads(heads, kv_heads, head_dim)
    max_positions = cfg.integer("max_position_embeddings", 2048)
    full, sliding = _ropes(cfg, family, max_positions, head_dim)
    windows = layer_windows(cfg, name, family.windows, layers)
    return ModelConfig(
        family=name,
        vocab_size=cfg.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=_inner_size(cfg, family, hidden),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=cfg.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_positions,
        tie_word_embeddings=cfg.boolean("tie_word_embeddings", False),
        qkv_bias=_bias(cfg, "qkv_bias", family.qkv_bias),
        o_bias=_bias(cfg, "o_bias", family.o_bias),
        mlp_bias=cfg.boolean("mlp_bias", False) if "mlp_bias" in family.reads else False,
        layers=tuple(LayerSpec(w, head_dim**-0.5, sliding if w else full) for w in windows),
        qk_norm=family.qk_norm,
        activation=_activation(cfg),
        dtype=_dtype(cfg),
        eos_token_ids=cfg.token_ids("eos_token_id"),
        bos_token_id=(cfg.token_ids("bos_token_id") or (None,))[0],
        allowed_keys=allowed,
        sources=cfg.sources,
    )


def _inner_size(cfg: ConfigReader, family: Family, hidden: int) -> int:
    if family.inner_ratio is None:
        return cfg.integer("intermediate_size")
    return cfg.integer("intermediate_size", family.inner_ratio * hidden)


def _ropes(
    cfg: ConfigReader, family: Family, max_positions: int, head_dim: int
) -> tuple[RopeConfig | None, RopeConfig | None]:
    """The ropes of layers with full attention, and of layers with a window."""
    if family.rope is None:
        return None, None
    if family.sliding_theta is None:
        rope = read_rope(cfg, max_positions, head_dim, family.rope)
        return rope, rope
    theta = family.sliding_theta
    if "rope_local_base_freq" in family.reads:
        theta = cfg.number("rope_local_base_freq", theta)
    return read_two_ropes(cfg, max_positions, head_dim, family.rope, theta)


def _family_of(raw: Mapping[str, Any]) -> tuple[str, Family]:
    by_architecture = {family.architecture: name for name, family in FAMILIES.items()}
    architectures = raw.get("architectures") or []
    supported = f"supported: {', '.join(sorted(by_architecture))}"
    if not isinstance(architectures, list) or len(architectures) > 1:
        raise UnsupportedModel(f"architectures={shown(architectures)} must name one architecture", supported)
    for architecture in architectures:
        if isinstance(architecture, str) and architecture not in by_architecture:
            refuse_other_inputs(architecture, raw)
        if not isinstance(architecture, str) or architecture not in by_architecture:
            raise UnsupportedModel(f"architecture {shown(architecture)} is not supported", supported)
    model_type = raw.get("model_type")
    name = by_architecture[architectures[0]] if architectures else model_type
    if not isinstance(name, str) or name not in FAMILIES or model_type not in (None, name):
        raise UnsupportedModel(f"model_type {shown(model_type)} is not supported here", supported)
    return name, FAMILIES[name]


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


def _activation(cfg: ConfigReader) -> Activation:
    name = cfg.text("hidden_act", "silu")
    if name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"activation {cfg.name('hidden_act')}={shown(name)} is not supported",
            f"supported: {', '.join(ACTIVATIONS)}",
        )
    cfg.sources["activation"] = cfg.sources["hidden_act"]
    return ACTIVATIONS[name]


def _dtype(cfg: ConfigReader) -> str | None:
    """`dtype`, or its older name `torch_dtype`, without the prefix "torch."."""
    value = cfg.optional_text("dtype") or cfg.optional_text("torch_dtype")
    return value.removeprefix("torch.") if value else None
