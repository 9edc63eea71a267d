"""What an output depends on, as digests: two equal envelopes and equal seeds mean equal tokens.

The *KV envelope* is everything that decides the content of a cache block: weights, config, rope,
dtype, kernels, block layout. The *execution envelope* adds what turns logits into text: tokenizer,
chat template, engine seed. (Sampling parameters travel with each output.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from minillm.config import EngineConfig
from minillm.model.loader import LoadedModel
from minillm.version import __version__


def digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the fields, order-independent."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def make_envelope(
    model: LoadedModel, engine: EngineConfig, draft: LoadedModel | None = None
) -> dict[str, str]:
    """`{"kv": digest, "execution": digest, ...}` and, readable beside them, what most often differs.

    A draft changes nothing under coupled verification; under rejection it decides which tokens are drawn.
    """
    config = asdict(model.config)
    del config["sources"]  # where a value was written down does not change what it does
    readable = {
        "backend": model.decoder.ops.name,
        "kernels": model.decoder.ops.kernel_set,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
    kv = {
        "schema": 1,
        "config": config,
        "weights": model.weights_digest,
        "block_size": engine.block_size,
        **readable,
    }
    execution = {
        "kv": kv,
        "tokenizer": model.tokenizer_digest,
        "seed": engine.seed,
        "minillm": __version__,
    }
    if engine.draft_verification == "rejection":
        execution["draft"] = {
            "model": draft.weights_digest if draft else engine.draft_model,
            "shape": engine.draft_shape,
            "adaptive": engine.adaptive_draft,
        }
    return {"kv": digest(kv), "execution": digest(execution), "minillm": __version__, **readable}
