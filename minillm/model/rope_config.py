"""Reads the rope part of a config.json, in the older and the newer format.

    older:  "rope_theta": 1e6, "rope_scaling": {"type" or "rope_type": "yarn", "factor": 4.0, ...}
    newer:  "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, ...}

If a config has both, `rope_scaling` replaces `rope_parameters`. A `rope_theta` inside the chosen dict
overrides the one at the top level. transformers reads configs this way, so checkpoints saved by it mean
this.

In some families layers with a sliding window have another rope than those with full attention:

    newer:  "rope_parameters": {"full_attention": {...}, "sliding_attention": {...}}
    older:  `rope_scaling` and `rope_theta` are those of full attention; the others have the default kind
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minillm.config import RopeConfig, shown
from minillm.errors import UnsupportedModel
from minillm.model.config_reader import ConfigReader
from minillm.model.rope import inverse_frequencies, longrope_attention_factor, yarn_attention_factor

ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"})
_LARGEST_FLOAT32 = 3e38
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")

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
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor"},
}
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class RopeRules:
    """How a family's configs mean rope.

    theta            where a config has no rope_theta
    partial          whether `partial_rotary_factor` is read
    kinds            other names of kinds, e.g. Phi-3's "su" for longrope
    absent           the rope of a config that has none of the keys
    """

    theta: float = 10000.0
    partial: bool = False
    kinds: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)


def read_rope(cfg: ConfigReader, max_positions: int, head_dim: int, rules: RopeRules) -> RopeConfig:
    """The rope of a model with `max_position_embeddings` = `max_positions`.

    Raises:
        UnsupportedModel: an unknown kind, or a missing or unknown parameter; the message names it.
    """
    source = "rope_scaling" if cfg.raw.get("rope_scaling") else "rope_parameters"
    given = cfg.raw.get(source)
    params = rules.absent if given is None else given
    cfg.sources["rope"] = source if given else "default"
    theta = cfg.number("rope_theta", rules.theta)
    return _parse(cfg, source, _object(source, params), theta, _Sizes(max_positions, head_dim, rules))


def read_two_ropes(
    cfg: ConfigReader, max_positions: int, head_dim: int, rules: RopeRules, sliding_theta: float
) -> tuple[RopeConfig, RopeConfig]:
    """The ropes of layers with full attention, and of layers with a window.

    `sliding_theta` is that of the latter, unless the config has one for them.
    """
    nested = _object("rope_parameters", cfg.raw.get("rope_parameters"))
    if set(nested) - {FULL, SLIDING}:
        raise UnsupportedModel(
            f"rope_parameters={shown(nested)} must have the keys {FULL} and {SLIDING}",
            "this family has a rope for each kind of layer",
        )
    scaling = _object("rope_scaling", cfg.raw.get("rope_scaling"))
    cfg.sources["rope"] = "rope_parameters" if nested else "rope_scaling" if scaling else "default"
    sizes = _Sizes(max_positions, head_dim, rules, by_kind=True)
    full = _object(FULL, nested.get(FULL)) | scaling
    local = _object(SLIDING, nested.get(SLIDING))
    return (
        _parse(cfg, FULL, full, cfg.number("rope_theta", rules.theta), sizes),
        _parse(cfg, SLIDING, local, sliding_theta, sizes),
    )


@dataclass(frozen=True)
class _Sizes:
    """What the parameters of a rope are checked against, and whether each kind of layer has its own."""

    max_positions: int
    head_dim: int
    rules: RopeRules
    by_kind: bool = False


def _object(name: str, value: Any) -> dict[str, Any]:
    """A JSON object; null is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UnsupportedModel(f"{name}={shown(value)} must be an object")
    return dict(value)


def _parse(
    cfg: ConfigReader, source: str, params: dict[str, Any], default_theta: float, sizes: _Sizes
) -> RopeConfig:
    kind: Any = params.get("rope_type", params.get("type", "default"))
    if isinstance(kind, str):
        kind = sizes.rules.kinds.get(kind, kind)
    _refuse_unknown(source, kind, params, sizes.rules.partial)
    inner, max_positions = ConfigReader(params), sizes.max_positions
    part = _rotary_factor(cfg, inner, sizes)
    theta = inner.number("rope_theta", default_theta)
    if kind == "default":
        return RopeConfig(theta=theta, rotary_factor=part)
    original = inner.integer("original_max_position_embeddings", max_positions)
    if not sizes.by_kind:
        original = cfg.integer("original_max_position_embeddings", original)
    if kind == "yarn" and theta <= 1:
        raise UnsupportedModel(
            f"rope_theta={theta:g} must be above 1 for yarn", "its ramp divides by ln(theta)"
        )
    if kind == "yarn":
        yarn = _yarn(inner, theta, original, max_positions)
        # transformers looks for `truncate` beside the ropes of both kinds, where no config has it.
        return replace(yarn, rotary_factor=part, truncate=yarn.truncate or sizes.by_kind)
    if kind == "longrope":
        return _longrope(inner, RopeConfig(kind, theta, part, original_max_position=original), sizes)
    if kind == "dynamic":
        return RopeConfig(kind, theta, part, inner.number("factor"), original_max_position=max_positions)
    if kind == "linear":
        return RopeConfig(kind, theta, part, inner.number("factor"))
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if low >= high:
        raise UnsupportedModel(f"low_freq_factor={low:g} must be below high_freq_factor={high:g}")
    return RopeConfig(kind, theta, part, inner.number("factor"), original, low, high)


def _rotary_factor(cfg: ConfigReader, inner: ConfigReader, sizes: _Sizes) -> float:
    """The part of each head that is rotated: an even number of components."""
    if not sizes.rules.partial:
        return 1.0
    part = inner.number("partial_rotary_factor", cfg.number("partial_rotary_factor", 1.0))
    if part > 1 or int(sizes.head_dim * part) % 2 or int(sizes.head_dim * part) == 0:
        raise UnsupportedModel(
            f"partial_rotary_factor={part:g} rotates {sizes.head_dim * part:g} of {sizes.head_dim} numbers",
            "rope rotates pairs: it must be a positive even number of them",
        )
    return part


def _longrope(params: ConfigReader, rope: RopeConfig, sizes: _Sizes) -> RopeConfig:
    pairs, original = rope.rotary_dim(sizes.head_dim) // 2, rope.original_max_position
    factor = params.optional_number("factor") or sizes.max_positions / original
    attention = params.optional_number("attention_factor")
    if attention is None:
        if original == 1:
            raise UnsupportedModel("longrope needs original_max_position_embeddings above 1")
        attention = longrope_attention_factor(factor, original)
    return replace(
        rope,
        factor=factor,
        attention_factor=attention,
        short_factor=params.numbers("short_factor", pairs),
        long_factor=params.numbers("long_factor", pairs),
    )


def require_finite_angles(rope: RopeConfig, head_dim: int, num_positions: int) -> None:
    """Refuse a rope whose tables would hold numbers beyond float32.

    Raises:
        UnsupportedModel: each parameter is in range, and together they are not.
    """
    kinds = (False, True) if rope.kind == "longrope" else (False,)
    fastest = max(float(inverse_frequencies(rope, head_dim, long).max()) for long in kinds) * num_positions
    if not (fastest < _LARGEST_FLOAT32 and rope.attention_factor < _LARGEST_FLOAT32):
        raise UnsupportedModel(
            f"rope_scaling of kind {rope.kind} with rope_theta={rope.theta:g} and factor={rope.factor:g} "
            "gives angles that are not finite",
            "download config.json again",
        )


def _refuse_unknown(source: str, kind: Any, params: dict[str, Any], partial: bool) -> None:
    nested = [key for key, value in params.items() if isinstance(value, dict)]
    if nested:
        raise UnsupportedModel(
            f"{source} differs by layer type ({shown(nested)})", "supported: one rope for all layers"
        )
    if kind not in KINDS:
        raise UnsupportedModel(f"rope kind {shown(kind)} is not supported", f"supported: {', '.join(KINDS)}")
    if "rope_type" not in params and "type" not in params and "factor" in params:
        raise UnsupportedModel(f"{source} has a factor but no rope_type", f"one of {', '.join(KINDS)}")
    if not partial and params.get("partial_rotary_factor") not in (None, 1.0):
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
        factor=factor,
        original_max_position=original,
        attention_factor=attention,
        beta_fast=params.optional_number("beta_fast") or 32.0,
        beta_slow=params.optional_number("beta_slow") or 1.0,
        truncate=params.boolean("truncate", True),
    )
