"""Reads the rope part of a config.json, in the older and the newer format.

    older:  "rope_theta": 1e6, "rope_scaling": {"type" or "rope_type": "yarn", "factor": 4.0, ...}
    newer:  "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, ...}

If a config has both, `rope_scaling` replaces `rope_parameters`. A `rope_theta` inside the chosen dict
overrides the one at the top level. transformers reads configs this way, so checkpoints saved by it mean
this.
"""

from __future__ import annotations

from typing import Any

from minillm.config import RopeConfig, shown
from minillm.errors import UnsupportedModel
from minillm.model.config_reader import ConfigReader
from minillm.model.rope import inverse_frequencies, yarn_attention_factor

ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"})
_LARGEST_FLOAT32 = 3e38
KINDS = ("default", "linear", "dynamic", "llama3", "yarn")

_COMMON = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}
_READ = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        "factor",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "beta_fast",
        "beta_slow",
        "truncate",
        "finetuned",
    },
}


def read_rope(cfg: ConfigReader, max_positions: int) -> RopeConfig:
    """The rope of a model with `max_position_embeddings` = `max_positions`.

    Raises:
        UnsupportedModel: an unknown kind, or a missing or unknown parameter; the message names it.
    """
    source = "rope_scaling" if cfg.raw.get("rope_scaling") else "rope_parameters"
    params = cfg.raw.get(source) or {}
    if not isinstance(params, dict):
        raise UnsupportedModel(f"{source}={shown(params)} must be an object")
    kind: Any = params.get("rope_type", params.get("type", "default"))
    cfg.sources["rope"] = source if params else "default"
    _refuse_unknown(source, kind, params)
    inner = ConfigReader(params)
    theta = inner.number("rope_theta", cfg.number("rope_theta", 10000.0))
    if kind == "default":
        return RopeConfig(theta=theta)
    original = cfg.integer(
        "original_max_position_embeddings", inner.integer("original_max_position_embeddings", max_positions)
    )
    if kind == "yarn" and theta <= 1:
        raise UnsupportedModel(
            f"rope_theta={theta:g} must be above 1 for yarn", "its ramp divides by ln(theta)"
        )
    if kind == "yarn":
        return _yarn(inner, theta, original, max_positions)
    if kind == "dynamic":
        return RopeConfig(kind, theta, inner.number("factor"), original_max_position=max_positions)
    if kind == "linear":
        return RopeConfig(kind, theta, inner.number("factor"))
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if low >= high:
        raise UnsupportedModel(f"low_freq_factor={low:g} must be below high_freq_factor={high:g}")
    return RopeConfig(kind, theta, inner.number("factor"), original, low, high)


def require_finite_angles(rope: RopeConfig, head_dim: int, num_positions: int) -> None:
    """Refuse a rope whose tables would hold numbers beyond float32.

    Raises:
        UnsupportedModel: each parameter is in range, and together they are not.
    """
    fastest = float(inverse_frequencies(rope, head_dim).max()) * num_positions
    if not (fastest < _LARGEST_FLOAT32 and rope.attention_factor < _LARGEST_FLOAT32):
        raise UnsupportedModel(
            f"rope_scaling of kind {rope.kind} with rope_theta={rope.theta:g} and factor={rope.factor:g} "
            "gives angles that are not finite",
            "download config.json again",
        )


def _refuse_unknown(source: str, kind: Any, params: dict[str, Any]) -> None:
    nested = [key for key, value in params.items() if isinstance(value, dict)]
    if nested:
        raise UnsupportedModel(
            f"{source} differs by layer type ({shown(nested)})", "supported: one rope for all layers"
        )
    if kind not in KINDS:
        raise UnsupportedModel(f"rope kind {shown(kind)} is not supported", f"supported: {', '.join(KINDS)}")
    if "rope_type" not in params and "type" not in params and "factor" in params:
        raise UnsupportedModel(f"{source} has a factor but no rope_type", f"one of {', '.join(KINDS)}")
    if params.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedModel(
            f"partial_rotary_factor={shown(params['partial_rotary_factor'])} is not supported", "only 1.0 is"
        )
    every = set().union(*_READ.values()) if kind == "default" else _READ[kind]
    for key in sorted(set(params) - _COMMON - every):
        if params[key] is not None:
            raise UnsupportedModel(f"{source} key {shown(key)} is not known for rope kind {shown(kind)}")


def _yarn(params: ConfigReader, theta: float, original: int, max_positions: int) -> RopeConfig:
    factor = params.number("factor", max_positions / original)
    given = params.raw.get("attention_factor")
    if given is None:
        mscale, all_dim = params.optional_number("mscale"), params.optional_number("mscale_all_dim")
        attention = yarn_attention_factor(factor, mscale, all_dim)
    else:
        attention = params.number("attention_factor")
    return RopeConfig(
        "yarn",
        theta,
        factor,
        original,
        attention_factor=attention,
        beta_fast=params.optional_number("beta_fast") or 32.0,
        beta_slow=params.optional_number("beta_slow") or 1.0,
        truncate=params.boolean("truncate", True),
    )
