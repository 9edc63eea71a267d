"""Runs a few requests before others come, so that the cost of first calls is in nobody's latency.

    begin | one token, alone | the same again | chunks, a batch, samples | end
          +---- first -------+---- again -----+

The first pass of each shape is slow: memory is touched for the first time, threads start, a GPU loads its
kernels. The events `warmup` mark the time of all this, so that metrics can keep it apart. The requests are
those of a tenant of their own with a random name: nobody finds their blocks in the prefix cache, and default
seeds of later requests stay as they were.

Left out: requests that could not be served here, because the context or the KV cache is too small for them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from minillm.config import SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.outputs import RequestOutput
from minillm.errors import MinillmError
from minillm.speculation.draft_model import DraftModel

_Shape = tuple[list[int], SamplingParams]
Run = Callable[[list[list[int]], list[SamplingParams], str], list[RequestOutput]]


@dataclass(frozen=True)
class Warmup:
    """What the start of an engine cost, in seconds.

    `load`: reading and packing the weights. `compile`: compiling kernels, 0 if they were found. `allocation`:
    reserving the KV tensors. `first`, `again`: the first request and the same one once more; 0 if it could
    not be served. `requests`: how many were run.
    """

    load: float
    compile: float
    allocation: float
    first: float = 0.0
    again: float = 0.0
    requests: int = 0


def warm_up(engine: Engine, run: Run) -> Warmup:
    """Run requests of several shapes and report their times as events. `run` returns finished outputs."""
    tenant = f"warmup-{secrets.token_hex(8)}"
    model, drafter = engine.model, engine.speculation.drafter if engine.speculation else None
    caches = [
        engine.worker.runner.cache,
        *([drafter.runner.cache] if isinstance(drafter, DraftModel) else []),
    ]
    allocation = sum(cache.allocation_seconds for cache in caches)
    start = Warmup(model.load_seconds, model.compile_seconds, allocation)
    _emit(engine, "begin", load=start.load, compile=start.compile, allocation=start.allocation)
    outputs = list[RequestOutput]()
    try:
        for shapes in _rounds(engine, tenant):
            outputs += run([ids for ids, _ in shapes], [params for _, params in shapes], tenant)
    finally:
        first, again = ([output.metrics.e2e for output in outputs] + [0.0, 0.0])[:2]
        _emit(engine, "end", first=first, again=again, requests=len(outputs))
    return replace(start, first=first, again=again, requests=len(outputs))


def _emit(engine: Engine, phase: str, **fields: float) -> None:
    engine.events.emit("warmup", "", None, phase=phase, **fields)
    engine.events.deliver()


def _rounds(engine: Engine, tenant: str) -> list[list[_Shape]]:
    """The requests that run together: one alone, the same again, then all others."""
    shapes = _shapes(engine, tenant)
    return [together for together in (shapes[:1], shapes[:1], shapes[1:]) if together]


def _shapes(engine: Engine, tenant: str) -> list[_Shape]:
    """A short prompt; whole chunks and more; several sequences; forks. Only what can be served."""
    greedy = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    drawn = SamplingParams(max_tokens=4, temperature=1.0, top_k=8, top_p=0.9, seed=0, ignore_eos=True)
    forked = SamplingParams(max_tokens=4, temperature=1.0, n=2, seed=0, ignore_eos=True)
    known = engine.model.num_token_ids
    chunk = min(engine.config.prefill_chunk, engine.model.max_model_len // 2)
    lengths = [(1, greedy), (chunk, greedy), (chunk + 1, drawn), (9, drawn), (17, greedy), (5, forked)]
    shapes = list[_Shape]()
    for number, (length, params) in enumerate(lengths):
        ids = [(number + 7 * i) % known for i in range(length)]
        with suppress(MinillmError):
            engine.check_request(ids, params, tenant)
            shapes.append((ids, params))
    return shapes
