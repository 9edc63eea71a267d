"""The shapes of the results of the ops over a whole model, for tracing and for `opcheck`: no kernel runs.

These ops get a number instead of tensors with shapes, so the shapes come from the bound model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import register_fake

from minillm.ops.bound_model import bound_models


def register_model_fakes(namespace: str) -> None:
    """Register the fake implementations in this namespace of ops."""

    def hidden(model: int, ids: Tensor, *others: object) -> Tensor:
        bound = bound_models[namespace, model]
        return torch.empty([ids.shape[0], bound.hidden_size], dtype=bound.dtype, device=bound.device)

    def last_logits(model: int, ids: Tensor, rows: list[Tensor], *others: object) -> Tensor:
        bound, kv_len = bound_models[namespace, model], rows[4]
        return torch.empty([kv_len.shape[0], bound.vocab_size], dtype=bound.dtype, device=bound.device)

    def step(
        model: int,
        ids: Tensor,
        rows: list[Tensor],
        all_rows: bool,
        draw_rows: Tensor | None,
        sampling: list[Tensor],
        *others: object,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = last_logits(model, ids, [ids] * 5 if all_rows else rows)
        return torch.empty_like(sampling[0]), ids.new_empty(logits.shape[:1], dtype=torch.bool), logits

    def decode_ahead(
        model: int, ids: Tensor, rows: object, depths: Tensor, keys: Tensor, *others: object
    ) -> Tensor:
        return ids.new_empty([depths.shape[0], keys.shape[0]])

    for fake in (hidden, last_logits, step, decode_ahead):
        register_fake(f"{namespace}::{fake.__name__}")(fake)
