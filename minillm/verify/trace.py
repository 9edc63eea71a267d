"""Runs one answer again, op by op, and keeps the digest of what every op gave for every token.

    tokens   t0 t1 t2 | t3 | t4         the prompt in its chunks, then one token after the other, as recorded
    call 0   embedding    d d d   d   d
    call 1   rms_norm     d d d   d   d          d = SHA-256 of this token's row of the result
    call 2   linear qkv   d d d   d   d
    ...

Two such tables of the same tokens are compared token by token, and for each token from the first call on. So
the place that is named is where the two computations part first; all that follows may only follow from it.

The ops are wrapped, so the layers run one op at a time. The native kernels have the same bits in one call
(contract C2); a difference that only the fused pass makes does not show here, and is reported as such. Sums
and products that PyTorch makes between the ops show in the next op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minillm.engine.diverge_record import digest_of
from minillm.memory.block_table import blocks_for, slot_mapping
from minillm.memory.kv_cache import KVCache
from minillm.model.decoder import Decoder
from minillm.model.loader import LoadedModel
from minillm.ops import kv_codes
from minillm.ops.contract import AttentionMetadata, LayerCache, PackedWeight, Weight
from minillm.ops.quantized import QuantizedMatrix
from minillm.worker.runner import ModelRunner, SlotMapping
from minillm.worker.step import SequenceRows

# The ops that compute something for each row.
ROW_OPS = frozenset(
    "embedding linear rms_norm layer_norm add_rms_norm act_and_mul act softcap route experts rope_and_cache "
    "paged_attention variant_attention".split()
)
OUTSIDE = -1  # the layer of the embedding, the final norm and the head


class Place(NamedTuple):
    """A call of an op: its layer (`OUTSIDE`: none), its name, and the weight it reads, if any."""

    layer: int
    op: str
    weight: str

    def __str__(self) -> str:
        op = f"{self.op} ({self.weight})" if self.weight else self.op
        return op if self.layer == OUTSIDE else f"layer {self.layer}, {op}"


@dataclass
class Trace:
    """`places[c]`: call c. `digests[c][t]`: what it gave for token t. `logits`: the last token's, a digest.

    `kept`: the row of the call and token that were asked for.
    """

    places: list[Place] = field(default_factory=list)
    digests: list[dict[int, str]] = field(default_factory=list)
    logits: str = ""
    kept: Tensor | None = None


class TracedOps:
    """`Ops` that digest each result. `positions`: the tokens of the rows of the pass that runs next."""

    def __init__(self, decoder: Decoder, trace: Trace, keep: tuple[int, int] | None = None) -> None:
        self._inner, self._trace, self._keep = decoder.ops, trace, keep
        self.name = decoder.ops.name
        self._weights = _weight_names(decoder)
        self.positions: Sequence[int] = ()
        self._call, self._layer = 0, OUTSIDE

    def begin(self, positions: Sequence[int]) -> None:
        """Start a pass over the tokens `positions`."""
        self.positions, self._call, self._layer = positions, 0, OUTSIDE

    def __getattr__(self, op: str) -> Any:
        inner = getattr(self._inner, op)
        return self._traced(op, inner) if op in ROW_OPS else inner

    def _traced(self, op: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = inner(*arguments, **named)
            self._take(self._place(op, arguments), self._rows(op, result, arguments))
            return result

        return call

    def _place(self, op: str, arguments: Sequence[Any]) -> Place:
        for argument in arguments:
            known = self._weights.get(_pointer(argument))
            if known is not None:
                self._layer = known[0]
                return Place(
                    self._layer, op, "head" if (op, known[1]) == ("linear", "embedding") else known[1]
                )
        return Place(self._layer, op, "")

    def _rows(self, op: str, result: Any, arguments: Sequence[Any]) -> list[Tensor]:
        """The rows that an op made: its results, and what it wrote to the cache."""
        made = list(result) if isinstance(result, tuple) else [result]
        if op == "rope_and_cache":
            cache = next(a for a in arguments if isinstance(a, LayerCache))
            meta = next(a for a in arguments if isinstance(a, AttentionMetadata))
            made += self._written(cache, meta.slot_mapping)
        return [tensor.detach().contiguous().cpu() for tensor in made]

    def _written(self, cache: LayerCache, slots: Tensor) -> list[Tensor]:
        """The keys and values in these slots [num_slots, num_kv_heads, head_dim], with scales if any."""
        if not kv_codes.has_codes(cache.k):
            return [each.flatten(0, 1)[slots] for each in cache]
        block_size = cache.k.shape[1]
        place = slots // block_size, slots % block_size
        coded = self._inner.view_keys(cache.k), kv_codes.rows(cache.v)
        return [part[place] for rows in coded for part in (rows.codes, rows.scales)]

    def _take(self, place: Place, rows: Sequence[Tensor]) -> None:
        trace, call = self._trace, self._call
        self._call += 1
        if call == len(trace.places):
            trace.places.append(place)
            trace.digests.append({})
        positions = self.positions[-len(rows[0]) :]  # the head runs for the last row only
        for i, position in enumerate(positions):
            row = torch.cat([part[i].reshape(-1).view(torch.uint8) for part in rows])
            trace.digests[call][position] = digest_of(row)
            if self._keep == (call, position):
                trace.kept = torch.cat([part[i].reshape(-1).to(torch.float64) for part in rows])


@torch.inference_mode()
def trace_tokens(
    model: LoadedModel,
    token_ids: Sequence[int],
    num_prompt: int,
    chunk: int,
    *,
    slots: SlotMapping = slot_mapping,
    keep: tuple[int, int] | None = None,
) -> Trace:
    """Run `token_ids`, of which the first `num_prompt` are the prompt, and return what every op gave.

    Args:
        chunk: the most tokens of the prompt in a pass.
        keep: a call and a token whose row is kept.
    """
    trace, size = Trace(), 16
    count, rope_offset = blocks_for(len(token_ids), size), model.rope_offset(num_prompt)
    ops = TracedOps(model.decoder, trace, keep)
    decoder = model.decoder.with_ops(ops)
    cache = KVCache.allocate(model.config, count, size, model.dtype, model.device)
    runner = ModelRunner(decoder, cache, size, slots)
    starts = [*range(0, num_prompt, chunk), *range(num_prompt, len(token_ids)), len(token_ids)]
    hidden = None
    for start, end in pairwise(starts):
        ops.begin(range(start, end))
        rows = SequenceRows(token_ids[start:end], start, list(range(count)), rope_offset)
        hidden = runner.forward([rows])
    if hidden is not None:
        trace.logits = digest_of(decoder.logits(hidden[-1:])[0].cpu())
    return trace


def _weight_names(decoder: Decoder) -> dict[int, tuple[int, str]]:
    """The layer and the name of each weight, by the address of its numbers."""
    weights = decoder.weights()
    found = dict[int, tuple[int, str]]()
    for name, weight in weights.own():
        found.setdefault(_pointer(weight), (OUTSIDE, name.removesuffix(".weight")))
    for layer, own in enumerate(weights.layers):
        for name, weight in own.named():
            found[_pointer(weight)] = layer, name.removesuffix(".weight")
    return found


def _pointer(value: Weight | Any) -> int:
    data = value.data if isinstance(value, PackedWeight) else value
    data = data.codes if isinstance(data, QuantizedMatrix) else data
    return data.data_ptr() if isinstance(data, Tensor) and data.numel() else 0
