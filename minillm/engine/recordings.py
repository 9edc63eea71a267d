"""Starts what a run writes down: the divergence record and the trace, if the options ask for them.

    LLM(diverge_record=PATH)    tokens and digests of logits    `diverge_record.py`
    LLM(record=PATH)            events and block tables         `observe/trace_file.py`, `block_map.py`

The header of a trace says what a reader of its events must know: the size of the pool and of the model, the
limits of a step. It leaves out what may be private: names, paths, tenants, public prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minillm.config import EngineConfig
from minillm.engine.block_map import BlockMap
from minillm.engine.diverge_record import start_record
from minillm.engine.tenant_memory import KVMemory
from minillm.engine.watch import StepWatch
from minillm.model.loader import LoadedModel
from minillm.observe.events import Events
from minillm.observe.trace_file import TraceRecorder

OPTIONS = (
    *("max_num_seqs", "max_num_batched_tokens", "prefill_chunk", "prefix_caching"),
    *("num_draft_tokens", "adaptive_draft", "draft_verification", "guarantee"),
)
MODEL = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size"),
)
ENVELOPE = ("minillm", "torch", "backend", "device")


def start_recordings(
    watch: Callable[[StepWatch | None], None],
    config: EngineConfig,
    model: LoadedModel,
    envelope: Mapping[str, Any],
    memory: KVMemory,
    events: Events,
) -> None:
    """Start the records that the options name. `watch` gives a watch the logits of every step.

    Raises:
        UsageError, StorageError: a file exists, or cannot be made.
    """
    watch(start_record(config, model, envelope))
    if config.record is not None:
        header = trace_header(config, model, envelope, memory)
        events.listeners.append(TraceRecorder(config.record, events, header))
        events.detail = BlockMap(memory, events)


def trace_header(
    config: EngineConfig, model: LoadedModel, envelope: Mapping[str, Any], memory: KVMemory
) -> dict[str, Any]:
    """What a trace says about the engine."""
    shape = {name: getattr(model.config, name) for name in MODEL}
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        **{name: envelope[name] for name in ENVELOPE},
        "block_size": memory.pool.block_size,
        "num_blocks": memory.pool.num_blocks,
        "kv_bytes_per_token": model.config.kv_bytes_per_token(model.dtype.itemsize),
        "model": {
            **shape,
            "parameters": model.config.num_parameters,
            "dtype": dtype,
            "max_model_len": model.max_model_len,
        },
        "options": {
            **{name: getattr(config, name) for name in OPTIONS},
            "drafts": config.draft_model is not None,
            "tenant_limits": config.tenant_limits is not None,
        },
    }
