"""A whole model bound to C++: its weights are bound once by name, then a pass is one call.

A step passes the model's number, the token ids and five index tensors, all on the CPU. Weights and caches are
checked when they are bound; the C++ side holds references to them until this object is deleted. The tables of
names in C++ are csrc/shared/places.h and numbers.h: a missing or unknown name is refused when the model is
bound. csrc/cpu and csrc/cuda register the same ops, each in its own namespace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary, finalize

import torch
from torch import Tensor

from minillm.config import LayerSpec, ModelConfig
from minillm.ops.columns import column
from minillm.ops.contract import AttentionMetadata, PackedWeight, Weight, plain
from minillm.ops.fused import FusedModel, ModelWeights, rounded_to
from minillm.ops.sampling import SamplingBatch, as_int64

_OWN = -1  # the layer number of weights that are not part of a layer
bound_models: WeakValueDictionary[tuple[str, int], BoundModel] = WeakValueDictionary()  # for the fakes


class BoundModel(FusedModel):
    """`FusedModel` in C++. The methods are documented in `fused.py`.

    `namespace` is that of the ops, for example "minillm".

    Raises:
        RuntimeError: a weight or a cache is missing, has an unknown name, or does not fit the others.
    """

    def __init__(
        self, namespace: str, weights: ModelWeights, k_cache: list[Tensor], v_cache: list[Tensor]
    ) -> None:
        ops = getattr(torch.ops, namespace)
        c = weights.config
        self.vocab_size, self.hidden_size = c.vocab_size, c.hidden_size
        self.dtype, self.device = weights.final_norm.weight.dtype, k_cache[0].device
        sizes = c.num_attention_heads, c.hidden_size, c.intermediate_size, c.vocab_size
        self.number: int = ops.bind_model(*sizes, c.activation)
        finalize(self, ops.unbind_model, self.number)
        _bind(ops, self.number, weights, k_cache, v_cache, self.dtype)
        bound_models[namespace, self.number] = self
        # The overloads are looked up once: a lookup by name costs as much as a small kernel.
        names = ("hidden", "last_logits", "step", "decode_ahead")
        self._ops = {name: getattr(ops, name).default for name in names}

    def hidden(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        result: Tensor = self.call("hidden", ids, _rows(meta))
        return result

    def last_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        result: Tensor = self.call("last_logits", ids, _rows(meta))
        return result

    def step(
        self,
        ids: Tensor,
        meta: AttentionMetadata,
        batch: SamplingBatch,
        *,
        all_rows: bool = False,
        draw_rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        draws = None if draw_rows is None else column(draw_rows)
        sampling = batch.tensors(), batch.num_token_ids
        tokens, finite, logits = self.call("step", ids, _rows(meta), all_rows, draws, *sampling)
        return tokens, finite, logits

    def decode_ahead(
        self,
        ids: Tensor,
        meta: AttentionMetadata,
        depths: Sequence[int],
        keys: Sequence[Sequence[int]],
        batch: SamplingBatch,
    ) -> list[list[int]]:
        by_step = (own[step] if step < len(own) else 0 for step in range(depths[0]) for own in keys)
        tokens: Tensor = self.call(
            "decode_ahead",
            ids,
            _rows(meta),
            column(depths),
            column(map(as_int64, by_step)).view(depths[0], len(depths)),
            batch.filters(),
            batch.num_token_ids,
        )
        return [row[:depth] for row, depth in zip(tokens.tolist(), depths, strict=True)]

    def call(self, op: str, *arguments: Any) -> Any:
        """Call an op of this model."""
        return self._ops[op](self.number, *arguments)


def _bind(
    ops: Any,
    number: int,
    weights: ModelWeights,
    k_cache: list[Tensor],
    v_cache: list[Tensor],
    dtype: torch.dtype,
) -> None:
    for k, v in zip(k_cache, v_cache, strict=True):
        ops.bind_layer(number, k, v, dtype)
    for name, value in _numbers(weights.config, dtype).items():
        ops.bind_number(number, _OWN, name, float(value))
    for i, (spec, rope) in enumerate(zip(weights.config.layers, weights.ropes, strict=True)):
        ops.bind_rope(number, i, *rope)
        for name, value in _layer_numbers(spec).items():
            ops.bind_number(number, i, name, float(value))
    if weights.positions is not None:
        ops.bind_positions(number, weights.positions)
    for name, weight in weights.own():
        ops.bind_weight(number, _OWN, name, _data(weight))
    for i, layer in enumerate(weights.layers):
        for name, weight in layer.named():
            ops.bind_weight(number, i, name, _data(weight))
    ops.finish_model(number)


def _numbers(config: ModelConfig, dtype: torch.dtype) -> dict[str, float]:
    """The numbers of a model under their names in csrc/shared/numbers.h."""
    return {
        "norm_eps": config.norm_eps,
        "norm_offset": config.norm_offset,
        "gated": config.gated,
        "embedding_scale": rounded_to(dtype, config.embedding_scale),
        "residual_scale": config.residual_scale,
        "logits_divisor": config.logits_divisor,
        "logits_softcap": config.logits_softcap or 0,
    }


def _layer_numbers(spec: LayerSpec) -> dict[str, float]:
    """The numbers of a layer, likewise."""
    numbers: dict[str, float] = {
        "window": spec.window or 0,
        "scale": spec.scale,
        "softcap": spec.softcap or 0,
    }
    if spec.experts is not None:
        numbers |= {f"experts.{name}": value for name, value in vars(spec.experts).items()}
    return numbers


def _data(weight: Weight) -> Tensor:
    return weight.data if isinstance(weight, PackedWeight) else plain(weight)


def _rows(meta: AttentionMetadata) -> tuple[Tensor, ...]:
    return meta.positions, meta.slot_mapping, meta.block_table, meta.query_start, meta.kv_len
