"""The shapes of the CUDA ops' results, for tracing and for `opcheck`: no kernel runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import register_fake

from minillm.ops.model_fakes import register_model_fakes


def register_fakes(namespace: str) -> None:
    """Register fake implementations (result shapes only) for tracing and for `opcheck`."""
    for name, fake in _FAKES.items():
        register_fake(f"{namespace}::{name}")(fake)
    register_model_fakes(namespace)


_FAKES: dict[str, Callable[..., Any]] = {
    "rms_norm": lambda x, *others: torch.empty_like(x),
    "add_rms_norm": lambda x, *others: (torch.empty_like(x), torch.empty_like(x)),
    "layer_norm": lambda x, *others: torch.empty_like(x),
    "act_and_mul": lambda gate_up, *others: gate_up.new_empty([gate_up.shape[0], gate_up.shape[1] // 2]),
    "act": lambda x, *others: torch.empty_like(x),
    "softcap": lambda x, *others: torch.empty_like(x),
    "route": lambda logits, per_token, *others: (
        logits.new_empty([logits.shape[0], per_token], dtype=torch.int64),
        logits.new_empty([logits.shape[0], per_token], dtype=torch.float32),
    ),
    "experts": lambda x, *others: torch.empty_like(x),
    "linear": lambda x, weight, bias, rung, float_out, stream: x.new_empty(
        [x.shape[0], weight.shape[0]], dtype=torch.float32 if float_out else x.dtype
    ),
    "linear_codes": lambda x, weight, bias, out, stream: x.new_empty([x.shape[0], out]),
    "embedding_codes": lambda ids, weight, out, size, dtype, stream: weight.new_empty(
        [ids.shape[0], size], dtype=dtype
    ),
    "begin_codes_": lambda packed, *others: None,
    "put_codes_": lambda packed, *others: None,
    "rope_and_cache": lambda q, *others: q.new_empty(q.shape),
    "paged_attention": lambda q, *others: q.new_empty(q.shape),
    "variant_attention": lambda q, *others: q.new_empty(q.shape),
    "sample": lambda logits, keys, *others: keys.new_empty([logits.shape[0]]),
    "finite_rows": lambda logits, stream: logits.new_empty([logits.shape[0]], dtype=torch.bool),
    "copy_blocks": lambda caches, source, destination, stream: None,
    "verify_coupled": lambda sampled, *others: (torch.empty_like(sampled), torch.empty_like(sampled)),
    "verify_draft": lambda draft, *others: (
        draft.new_empty([draft.shape[0], draft.shape[1] + 1]),
        draft.new_empty([draft.shape[0]]),
    ),
}
