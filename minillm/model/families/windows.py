"""Which layers of a model have a sliding window.

    Mistral      s s s s s s s s      every layer
    Qwen 2       f f f f s s s s      from `max_window_layers` on
    Gemma 3      s s s s s f s s      all but every 6th layer

A config may list the kinds itself, in `layer_types`. transformers then ignores the family's rule; so does
this file where the family's layers may differ at all.
"""

from __future__ import annotations

from typing import Any

from minillm.config import shown
from minillm.errors import UnsupportedModel
from minillm.model.config_reader import ConfigReader
from minillm.model.rope_config import FULL, SLIDING

MAX_WINDOW = (1 << 31) - 1  # tokens; kernels count positions in 32 bits


def layer_windows(cfg: ConfigReader, family: str, rule: str | int, layers: int) -> tuple[int | None, ...]:
    """Sliding window of every layer, None for full attention. `rule` is `Family.windows`.

    Raises:
        UnsupportedModel: `layer_types` does not fit the layers, names another kind, or needs a window that
            is missing.
    """
    window = None
    if rule == "own":
        return (None,) * layers
    if rule != "none":
        window = cfg.optional_integer("sliding_window", 4096, maximum=MAX_WINDOW)
    first = 0
    if rule in ("switched", "deep") and not cfg.boolean("use_sliding_window", False):
        window = None
    if rule == "deep":
        first = cfg.integer("max_window_layers", 28, minimum=0)
    kinds = cfg.raw.get("layer_types")
    if isinstance(rule, int):
        rule = cfg.integer("sliding_window_pattern", rule)
        derived = [FULL if (i + 1) % rule == 0 else SLIDING for i in range(layers)]
        return windows_by_kind(derived if kinds is None else kinds, window, layers)
    by_depth = tuple(window if i >= first else None for i in range(layers))
    if kinds is None:
        return by_depth
    by_kind = windows_by_kind(kinds, window, layers)
    if by_kind != by_depth and rule != "deep":
        raise UnsupportedModel(
            f"layer_types={shown(kinds)} is not supported for {family}", "all its layers must be of one kind"
        )
    return by_kind


def windows_by_kind(kinds: Any, window: int | None, layers: int) -> tuple[int | None, ...]:
    """The window of each layer, from the list of their kinds."""
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise UnsupportedModel(f"layer_types must list {layers} kinds", "one for each layer")
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise UnsupportedModel(f"layer_types names {shown(kind)}", f"supported: {FULL}, {SLIDING}")
    if window is None and SLIDING in kinds:
        raise UnsupportedModel(
            f"layer_types has {SLIDING}, but no sliding window is on",
            "set use_sliding_window and sliding_window",
        )
    return tuple(window if kind == SLIDING else None for kind in kinds)
