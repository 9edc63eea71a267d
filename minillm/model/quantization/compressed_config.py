"""Which module a compressed-tensors checkpoint stores how: its groups, their targets, and what they ignore.

    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group"}}}
    "ignore": ["lm_head", "re:.*mlp.gate$"]

A name in `ignore` comes first; then targets that name a module; then regular expressions ("re:..."), in the
order of the alphabet, as in the library; then classes of modules. A group's `input_activations` say how
kernels may round activations. Dynamic ones are not rounded here: that is nearer to the model before it was
quantised.

Refused by name: scales of activations found by calibration, sparsity, transforms, scales for keys and
values, and formats other than those in `compressed_tensors.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from minillm.config import shown
from minillm.config.checks import shortened
from minillm.config.quantization import CHANNEL
from minillm.model.quantization.compressed_tensors import Fp8, Int8, Packed, Strategy
from minillm.model.quantization.fp8 import Fp8Blocks, block_of
from minillm.model.quantization.names import beginning_with, exactly, is_linear
from minillm.model.quantization.settings import Settings
from minillm.model.quantization.stored import Matcher, StoredQuantization, StoredScheme, require_group

_KNOWN = (
    "quant_method format config_groups ignore quantization_status global_compression_ratio version".split()
)
_REFUSED = {
    "kv_cache_scheme": "scales for keys and values found by calibration",
    "transform_config": "weights that are multiplied with a transform",
}
_IN_SPARSITY = "format registry_requires_subclass targets ignore global_sparsity sparsity_structure".split()
_IN_GROUP = "targets weights input_activations format".split()
_OF_NUMBERS = (
    "num_bits type symmetric strategy group_size block_structure dynamic actorder scale_dtype zp_dtype "
    "observer observer_kwargs"
).split()
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


def compressed_quantization(config: Mapping[str, object]) -> StoredQuantization:
    """What a `quantization_config` with quant_method "compressed-tensors" says.

    Raises:
        UnsupportedModel: it asks for something that is missing here, or has a key that is not known.
    """
    settings = Settings(
        "quantization_config (compressed-tensors)", config, (*_KNOWN, "sparsity_config"), _REFUSED
    )
    settings.choice("quantization_status", ("compressed", "frozen"), "compressed")  # older files: frozen
    _refuse_sparsity(settings)
    rules: list[tuple[Matcher, StoredScheme | None]] = [(_named(n), None) for n in settings.names("ignore")]
    groups = settings.get("config_groups", {})
    if not isinstance(groups, dict) or not groups:
        settings.refuse("config_groups", groups, "it must be an object with groups")
    schemes: dict[str, StoredScheme | None] = {}
    for name, values in groups.items():
        group = Settings(
            f"config_groups.{shortened(name)}",
            values,
            _IN_GROUP,
            {"output_activations": "rounded outputs"},
        )
        scheme = _scheme(group, settings.get("format", "naive-quantized"))
        schemes |= dict.fromkeys(group.names("targets"), scheme)
    rules += [(_named(target), schemes[target]) for target in sorted(schemes, key=_rank)]
    return StoredQuantization("compressed-tensors", tuple(rules))


def _rank(target: str) -> tuple[int, str]:
    """Names of modules, then regular expressions, then classes."""
    if target.startswith("re:"):
        return 1, target
    return (2 if target in _CLASSES else 0), target


def _named(target: str) -> Matcher:
    """Matches what an entry of `targets` or `ignore` names."""
    if target.startswith("re:"):
        return beginning_with(target.removeprefix("re:"))
    return _CLASSES.get(target) or exactly(target)


_CLASSES: Mapping[str, Matcher] = {"Linear": is_linear, "Embedding": lambda module: not is_linear(module)}


def _refuse_sparsity(settings: Settings) -> None:
    sparsity = settings.get("sparsity_config", {})
    if sparsity:
        own = Settings("sparsity_config", sparsity, _IN_SPARSITY, {})
        own.choice("format", ("dense",), "dense")


def _scheme(group: Settings, common_format: str) -> StoredScheme | None:
    """How a group's weights are stored, or None: plainly."""
    if not group.given("weights"):
        return None
    if group.given("input_activations"):
        inputs = Settings(f"{group.where}.input_activations", group.get("input_activations"), _OF_NUMBERS, {})
        if inputs.get("dynamic", False) is not True:
            inputs.refuse(
                "dynamic", inputs.get("dynamic", False), "scales of activations found by calibration"
            )
    weights = Settings(
        f"{group.where}.weights", group.get("weights"), _OF_NUMBERS, {"dynamic": "scales found at run time"}
    )
    stored = group.get("format", common_format)
    if stored not in _FORMATS:
        group.refuse("format", stored, f"supported: {', '.join(_FORMATS)}")
    kind = weights.choice("type", ("int", "float"), "int")
    if kind == "float":
        return _floats(weights, stored)
    return _integers(weights, stored)


def _floats(weights: Settings, stored: str) -> StoredScheme:
    if stored not in ("float-quantized", "naive-quantized"):
        weights.refuse("type", "float", f"{shown(stored)} holds integers")
    weights.choice("num_bits", (8,), 8)
    weights.choice("symmetric", (True,), True)
    if weights.get("strategy") == "block":
        return Fp8Blocks(block_of(weights, "block_structure"), (".weight_scale",))
    return Fp8(*_strategy(weights, 8))


def _integers(weights: Settings, stored: str) -> StoredScheme:
    if stored == "float-quantized":
        weights.refuse("type", "int", "float-quantized holds floats")
    bits = weights.choice("num_bits", (4, 8), 8)
    symmetric = weights.choice("symmetric", (True, False), True)
    order = weights.get("actorder", False)
    if order not in (False, True, "group", "dynamic", "weight", "static"):
        weights.refuse("actorder", order, "supported: group, weight")
    ordered = order in (True, "group", "dynamic")
    if stored != "pack-quantized":
        if ordered:
            weights.refuse("actorder", order, "supported with pack-quantized alone")
        return Int8(*_strategy(weights, 8), symmetric)
    strategy, group = _strategy(weights, bits)
    if strategy == "tensor" and not symmetric:
        weights.refuse(
            "symmetric", False, "a zero point for a whole matrix is not supported with pack-quantized"
        )
    if strategy != "group" and ordered:
        weights.refuse("actorder", order, "it needs groups")
    return Packed(strategy, group, bits, symmetric, ordered)


def _strategy(weights: Settings, bits: int) -> tuple[Strategy, int]:
    """The strategy, inferred as the library does where it is missing, and the group or CHANNEL."""
    size = weights.integer("group_size", 0)
    inferred = "group" if size > 0 else "channel" if size == -1 else "tensor"
    strategy = weights.choice("strategy", ("tensor", "channel", "group"), inferred)
    if strategy == "group":
        return "group", require_group(size, bits, weights.where)
    if size not in (0, -1):
        weights.refuse("group_size", size, "the strategy has no groups")
    return ("tensor" if strategy == "tensor" else "channel"), CHANNEL
