"""Replaced parts that this model or this configuration would not use, or would use wrongly, are refused."""

from __future__ import annotations

from minillm.config import EngineConfig
from minillm.engine.parts import Parts
from minillm.errors import UsageError
from minillm.model.loader import LoadedModel
from minillm.worker.decode import decode
from minillm.worker.prefill import prefill


def require_usable(parts: Parts, model: LoadedModel, config: EngineConfig) -> None:
    """Check every replaced part against the model and the configuration.

    Raises:
        UsageError: the message names the part and says why.
    """
    if parts.read_cache and parts.attention:
        raise UsageError("part 'read_cache' is not used beside 'attention'", "replace only one of them")
    if parts.verify_draft and config.draft_verification != "rejection":
        raise UsageError(
            "part 'verify_draft' is used only in rejection sampling", 'set draft_verification="rejection"'
        )
    _require_plain_attention(parts, model)
    _require_plain_cache(parts, model)
    _require_one_rope(parts, model)


def _require_plain_attention(parts: Parts, model: LoadedModel) -> None:
    """Capped scores and sinks belong to the backend's own attention (`Ops.variant_attention`)."""
    name = "attention" if parts.attention else "read_cache" if parts.read_cache else None
    for i, layer in enumerate(model.config.layers):
        if name and (layer.softcap is not None or layer.sinks):
            what = "sinks" if layer.sinks else "a softcap"
            raise UsageError(
                f"part {name!r} is not used by layer {i}: its attention has {what}",
                "use a model without softcaps and sinks",
            )


def _require_plain_cache(parts: Parts, model: LoadedModel) -> None:
    """A part that gets a cache tensor gets one of numbers, with a row for each slot."""
    for name in ("attention", "write_cache", "read_cache"):
        if model.config.kv_dtype is not None and getattr(parts, name):
            raise UsageError(
                f"part {name!r} cannot be replaced with a KV cache in {model.config.kv_dtype}",
                "leave kv_dtype out: the part then gets a cache of plain numbers",
            )


def _require_one_rope(parts: Parts, model: LoadedModel) -> None:
    """A loop that passes no `rope_offset` on would give long sequences the keys of short ones."""
    short = model.short_length
    loops = {"prefill_loop": parts.prefill_loop is prefill, "decode_loop": parts.decode_loop is decode}
    for name, is_own in loops.items():
        if short is not None and not is_own:
            raise UsageError(
                f"part {name!r} cannot be replaced where longrope has short and long sequences",
                f"set max_model_len to {short} or less",
            )
