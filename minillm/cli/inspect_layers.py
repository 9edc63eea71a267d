"""The parts of a model's layers, named: what `minillm inspect` says about the block.

Most models repeat one layer. Others have two or three kinds in turns. What is equal in all layers is said
once; then each kind of layer with what it has of its own:

    all 12 layers           norms, attention, MLP
    layers 0-4, 6-10        window 512 tokens, rope theta 10,000
    layers 5, 11            window none, rope theta 1,000,000
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from minillm.tables import folding_table

if TYPE_CHECKING:
    from minillm.config import LayerSpec, ModelConfig, RopeConfig

Described = dict[str, Any]

_PLACES = {"pre": "before", "post": "after", "sandwich": "before and after"}
_NORMS = {"rms": "RMSNorm", "layer": "LayerNorm with bias"}
_QK_NORMS = {"head": "each head apart", "wide": "over all heads together"}
# Divisors of longrope, one for each pair: config.json lists them.
_TOO_LONG = ("short_factor", "long_factor")


def describe_layers(config: ModelConfig) -> list[Described]:
    """What each layer is made of, as plain data; a part that it lacks is None or False."""
    return [{"layer": i, **_describe(config, layer)} for i, layer in enumerate(config.layers)]


def _describe(config: ModelConfig, layer: LayerSpec) -> Described:
    gate = {"activation": config.activation, "gated": config.gated}
    return {
        "norms": layer.norms,
        "norm": config.norm_kind,
        "norm_offset": config.norm_offset,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "qk_norm": config.qk_norm,
        "scale": layer.scale,
        "rope": None if layer.rope is None else describe_rope(layer.rope, config.head_dim),
        "learned_positions": config.learned_positions,
        "window": layer.window,
        "softcap": layer.softcap,
        "sinks": layer.sinks,
        "biases": _biases(config, layer),
        "mlp": {"size": config.intermediate_size} | gate if layer.experts is None else None,
        "experts": None if layer.experts is None else asdict(layer.experts) | gate,
    }


def describe_rope(rope: RopeConfig, head_dim: int) -> Described:
    """The kind, theta, the number of rotated components of a head, and what its kind has besides."""
    default = asdict(type(rope)())
    own = {key: value for key, value in asdict(rope).items() if value != default[key]}
    for key in ("rotary_factor", *_TOO_LONG):
        own.pop(key, None)
    return {"kind": rope.kind, "theta": rope.theta, "rotary_dim": rope.rotary_dim(head_dim)} | own


def _biases(config: ModelConfig, layer: LayerSpec) -> dict[str, bool]:
    inner = {"mlp": config.mlp_bias} if layer.experts is None else {"experts": config.expert_bias}
    return {"qkv": config.qkv_bias, "o": config.o_bias} | inner


# ---- as text --------------------------------------------------------------------------------------


def layer_tables(layers: list[Described]) -> list[Table]:
    """A table of what all layers have, and one for each kind of layer."""
    named = [_parts(layer) for layer in layers]
    common = {part: said for part, said in named[0].items() if all(n.get(part) == said for n in named)}
    tables = [_table(f"the block, in all {len(layers)} layers", common)]
    kinds: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, parts in enumerate(named):
        own = tuple((part, said) for part, said in parts.items() if part not in common)
        kinds.setdefault(own, []).append(i)
    if len(kinds) > 1:
        tables += [_table(ranges(members), dict(own)) for own, members in kinds.items()]
    return tables


def _table(title: str, parts: dict[str, str]) -> Table:
    table = folding_table("part", "what", title=title)
    for part, said in parts.items():
        table.add_row(part, said)
    return table


def ranges(numbers: list[int]) -> str:
    """Which layers: "layer 5", "layers 0-4, 6-10", "layers 0, 2, ..., 34"."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    step = numbers[1] - numbers[0]
    if step > 1 and len(numbers) > 4 and numbers == list(range(numbers[0], numbers[-1] + 1, step)):
        return f"layers {numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return "layers " + ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _parts(layer: Described) -> dict[str, str]:
    """The parts that the layer has, each in a few words."""
    said = {
        "norms": _norms_text(layer),
        "attention": _attention_text(layer),
        "norm of q, k": _QK_NORMS.get(layer["qk_norm"], ""),
        "positions": _positions_text(layer),
        "window": window_text(layer["window"]),
        "score cap": f"{layer['softcap']:g} * tanh(score / {layer['softcap']:g})" if layer["softcap"] else "",
        "sinks": "one score per head, without a value" if layer["sinks"] else "",
        "MLP": f"{_gate_text(layer['mlp'])}, size {layer['mlp']['size']:,}" if layer["mlp"] else "",
        "experts": experts_text(layer["experts"]),
        "biases": _biases_text(layer["biases"]),
    }
    return {part: text for part, text in said.items() if text}


def _norms_text(layer: Described) -> str:
    offset = f", times ({layer['norm_offset']:g} + weight)" if layer["norm_offset"] else ""
    return f"{_NORMS[layer['norm']]} {_PLACES[layer['norms']]} attention and MLP{offset}"


def _attention_text(layer: Described) -> str:
    text = f"query heads {layer['heads']}, key/value heads {layer['kv_heads']}, size {layer['head_dim']}"
    usual = layer["head_dim"] ** -0.5
    return text if layer["scale"] == usual else f"{text}; scores times {layer['scale']:.6g}"


def _biases_text(biases: dict[str, bool]) -> str:
    names = {"qkv": "q, k, v", "o": "o", "mlp": "MLP", "experts": "experts and router"}
    return ", ".join(names[place] for place, present in biases.items() if present)


def _gate_text(mlp: Described) -> str:
    if not mlp["gated"]:
        return f"{mlp['activation']}(up), no gate"
    return "swiglu_clamped" if mlp["activation"] == "swiglu_clamped" else f"{mlp['activation']}(gate) * up"


def _positions_text(layer: Described) -> str:
    """How the layer knows the order of its tokens."""
    if layer["learned_positions"]:
        return "learned vectors, added to the embedding"
    if layer["rope"] is None:
        return "none: q and k are not rotated"
    return rope_text(layer["rope"], layer["head_dim"])


def rope_text(rope: Described, head_dim: int) -> str:
    """The kind of rope and its numbers."""
    kind = "rope" if rope["kind"] == "default" else f"rope {rope['kind']}"
    words = [kind, f"theta {_number(rope['theta'])}"]
    if rope["rotary_dim"] != head_dim:
        words.append(f"{rope['rotary_dim']} of {head_dim} numbers of a head")
    named = [key for key in rope if key not in ("kind", "theta", "rotary_dim")]
    return ", ".join([*words, *(f"{key} {_number(rope[key])}" for key in named)])


def _number(value: Any) -> str:
    return str(value) if isinstance(value, bool) else f"{value:,.10g}"


def window_text(window: int | None) -> str:
    """How far back a token sees."""
    return "none: all earlier tokens" if window is None else f"{window:,} tokens"


def experts_text(experts: Described | None) -> str:
    """How many experts, how many of them a token uses, and how their outputs are weighted."""
    if experts is None:
        return ""
    weights = "sum to 1" if experts["renormalize"] else "not renormalised"
    return (
        f"{experts['count']}, of which a token uses {experts['per_token']}; {_gate_text(experts)}, "
        f"size {experts['size']:,}; weights {weights}"
    )
