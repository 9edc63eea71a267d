"""Makes the envelope of an engine, from its model, its options and its replaced parts (`envelope.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import torch

from minillm.config import EngineConfig, ModelConfig
from minillm.engine.envelope import ExecutionEnvelope, plain_params
from minillm.engine.parts import Parts
from minillm.memory.envelope import KVEnvelope
from minillm.model.loader import LoadedModel
from minillm.version import __version__

_BLOCK_PARTS = frozenset(
    "rope attention linear write_cache read_cache slot_mapping prefill_loop decode_loop".split()
)


def make_envelope(
    model: LoadedModel, engine: EngineConfig, parts: Parts, draft: LoadedModel | None = None
) -> ExecutionEnvelope:
    """The envelope of an engine.

    The draft model is part of it only under rejection sampling, where it decides which tokens are drawn.
    Under coupled verification it does not change the output.
    """
    replaced = _replaced(parts)
    return ExecutionEnvelope(
        kv=kv_envelope(model, engine, parts, draft),
        tokenizer=_tokenizer(model),
        chat_templates=dict(model.tokenizer.chat_templates) if model.tokenizer else {},
        end_of_text=tuple(model.eos_token_ids),
        sampling_defaults=plain_params(model.default_params),
        speculation=_speculation(engine, parts, draft),
        parts={name: part for name, part in replaced.items() if name not in _BLOCK_PARTS},
        minillm=__version__,
        engine_seed=int(engine.seed),
    )


def kv_envelope(
    model: LoadedModel, engine: EngineConfig, parts: Parts, draft: LoadedModel | None = None
) -> KVEnvelope:
    """The KV envelope of a model in an engine. Of `draft` only the keys that a user allowed are on record."""
    config = asdict(model.config)
    # Where a value was read from, and the dtype that config.json names, decide nothing: `dtype` does.
    allowed = {*config.pop("allowed_keys"), *(draft.config.allowed_keys if draft else ())}
    del config["sources"], config["dtype"]
    kv_dtype = config.pop("kv_dtype")
    for part in (*config["layers"], config):
        del part["quantization"]
    return KVEnvelope(
        weights=model.weights_digest,
        config=config,
        allowed_config_keys=sorted(allowed),
        dtype=str(model.dtype).removeprefix("torch."),
        kv_dtype=kv_dtype,
        quantization=forms_of(model.config),
        backend=model.decoder.ops.name,
        device=model.device.type,
        kernels=model.decoder.ops.kernel_set,
        torch=str(torch.__version__),
        block_size=int(engine.block_size),
        block_parts={name: part for name, part in _replaced(parts).items() if name in _BLOCK_PARTS},
    )


def forms_of(config: ModelConfig) -> list[dict[str, Any]] | None:
    """The form of each quantised matrix by its name, for each layer and then outside; None: there is none."""
    values = asdict(config)
    forms = [owner["quantization"] or {} for owner in (*values["layers"], values)]
    return forms if any(forms) else None


def _tokenizer(model: LoadedModel) -> dict[str, Any] | None:
    tokenizer = model.tokenizer
    if tokenizer is None:
        return None
    return {
        "content": model.tokenizer_digest,
        "special_tokens": dict(tokenizer.special_tokens),
        "bos": tokenizer.bos_token_id,
        "splits_special_tokens": bool(tokenizer.rust.encode_special_tokens),
    }


def _speculation(engine: EngineConfig, parts: Parts, draft: LoadedModel | None) -> dict[str, Any] | None:
    if engine.draft_verification != "rejection" or (engine.draft_model is None and parts.drafter is None):
        return None
    name = None if engine.draft_model is None else str(engine.draft_model)
    return {
        "draft": kv_envelope(draft, engine, parts).digest if draft else name,
        "shape": engine.draft_shape,
        "adaptive": engine.adaptive_draft,
    }


def _replaced(parts: Parts) -> dict[str, str]:
    """The parts that are not the engine's own: the name of each as Python knows it."""
    defaults = Parts()
    mine = {field.name: getattr(parts, field.name) for field in fields(parts)}
    return {name: _name(part) for name, part in mine.items() if part is not getattr(defaults, name)}


def _name(part: Callable[..., Any]) -> str:
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"
