"""Runs a step at which two records part again, on both sides, and names the layer and the op.

    record A --engine A--> trace of every op --+
                                               +--> the first token, then the first op, with other bits
    record B --engine B--> trace of every op --+

The whole answer up to the step is run again, not the step alone: keys and values of earlier tokens may differ
before any logit shows it. An engine's trace ends with logits; their digest is compared with its record. If it
is another one, the run was not repeated, and the place that is named says little: that is reported too.

A backend without row-invariant kernels (the reference) computes other bits in other shapes. Its step can only
be repeated if the request ran alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.errors import UsageError
from minillm.memory.block_table import slot_mapping
from minillm.model.loader import LoadedModel
from minillm.verify.diverge import Divergence, spacing
from minillm.verify.record import Recorded
from minillm.verify.trace import Place, Trace, trace_tokens
from minillm.worker.runner import SlotMapping


@dataclass(frozen=True)
class Side:
    """One engine to run again: its model, the most prompt tokens in a pass, its slot mapping."""

    model: LoadedModel
    chunk: int
    slots: SlotMapping = slot_mapping


@dataclass(frozen=True)
class Origin:
    """Where two computations part: the token (its index in prompt and answer) and the call of an op.

    `position`: the output position whose logits this token gives, -1 and less inside the prompt. `differing`
    of `numbers` numbers of the row differ, the largest difference is `roundings` units in the last place.
    """

    token: int
    position: int
    place: Place
    differing: int
    numbers: int
    roundings: float


@dataclass(frozen=True)
class Rerun:
    """The result: the origin, if there is one, and whether each side gave the logits of its record again."""

    origin: Origin | None
    repeats_a: bool
    repeats_b: bool


def rerun(divergence: Divergence, a: Side, b: Side) -> Rerun:
    """Run the step of `divergence`, which must be one of arithmetic, on both sides."""
    run_a = _run(a, divergence.request_a, divergence)
    run_b = _run(b, divergence.request_b, divergence)
    trace_a, trace_b = run_a(None), run_b(None)
    found = first_difference(trace_a, trace_b)
    origin = None
    if found is not None:
        kept = run_a(found).kept, run_b(found).kept
        prompt = len(divergence.request_a.prompt)
        dtype = str(a.model.dtype).removeprefix("torch.")
        place = trace_a.places[found[0]]
        origin = Origin(found[1], found[1] - prompt + 1, place, *_difference(*kept, dtype))
    digests = [step.digest if step else None for step in (divergence.a, divergence.b)]
    return Rerun(origin, trace_a.logits == digests[0], trace_b.logits == digests[1])


def first_difference(a: Trace, b: Trace) -> tuple[int, int] | None:
    """The call and the token where two traces part: the first token, and of it the first call."""
    calls = range(min(len(a.places), len(b.places)))
    tokens = sorted({token for digests in (*a.digests, *b.digests) for token in digests})
    for token in tokens:
        for call in calls:
            if a.digests[call].get(token) != b.digests[call].get(token):
                return call, token
    return None


def _run(side: Side, request: Recorded, at: Divergence) -> Callable[[tuple[int, int] | None], Trace]:
    ids, prompt = request.tokens(at.sample, at.position), len(request.prompt)
    if len(ids) > side.model.max_model_len or max(ids) >= side.model.config.vocab_size:
        raise UsageError(
            f"request {request.number} does not fit {side.model.folder.name}: tokens of another model",
            "give the model of the records",
        )

    def run(keep: tuple[int, int] | None) -> Trace:
        return trace_tokens(side.model, ids, prompt, side.chunk, slots=side.slots, keep=keep)

    return run


def _difference(a: Tensor | None, b: Tensor | None, dtype: str) -> tuple[int, int, float]:
    """How many of how many numbers differ, and the largest difference in units in the last place.

    Rows of other shapes, as codes and plain keys have, give 0 of 0.
    """
    if a is None or b is None or a.shape != b.shape:
        return 0, 0, 0.0
    unequal = torch.nonzero(a != b).flatten().tolist()
    steps = [abs(a[i] - b[i]).item() / spacing(float(a[i]), dtype) for i in unequal]
    return len(unequal), a.numel(), max(steps, default=0.0)


def side_of(engine: Any) -> Side:
    """The side of a running engine (`LLM.engine`), with its parts."""
    config = engine.config
    chunk = min(config.prefill_chunk, config.max_num_batched_tokens)
    return Side(engine.model, chunk, engine.parts.slot_mapping)
