"""What events and metrics cost: CPU time of decode steps with and without them, in turns.

    step      1     2     3     4     5     6     7     8
    metrics   on    off   off   on    on    off   off   on        neighbours are a pair
              +--pair--+  +--pair--+  +--pair--+  +--pair--+

One batch decodes all the time. Metrics listen in every second step, so both steps of a pair have the same
batch, nearly the same context and the same state of the machine. The CPU time of the thread is taken, because
other programs on the machine do not count in it. The difference of a pair is mostly noise, so there are many:
given is their trimmed mean, with the interval in which 95 % of the means of redrawn pairs lie (bootstrap).

Source: Efron, "Bootstrap methods: another look at the jackknife" (1979). Left out: prefill steps, which are
longer and have fewer events for each token.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from minillm.config import SamplingParams
from minillm.llm import LLM
from minillm.observe.online import EngineMetrics

_PROMPT = 16
_TRIMMED = 0.1  # of the pairs at each end: steps that were interrupted
_REDRAWN = 1000


@dataclass(frozen=True)
class ObservingCost:
    """Seconds of CPU time of a step, the seconds that metrics add, and their share with a 95 % interval."""

    batch: int
    pairs: int
    step_seconds: float
    added_seconds: float
    share: float
    low: float
    high: float


def observing_cost(llm: LLM, batch: int = 32, pairs: int = 500) -> ObservingCost:
    """Measure `pairs` pairs of decode steps of `batch` sequences."""
    metrics = EngineMetrics(llm.engine)
    try:
        found = list[tuple[float, float]]()
        while len(found) < pairs:
            found += _decode(llm, metrics, batch, pairs - len(found))
    finally:
        metrics.detach()
    added = [on - off for on, off in found]
    plain = statistics.median(off for _, off in found)
    chance = random.Random(0)
    means = sorted(_mean(chance.choices(added, k=len(added))) / plain for _ in range(_REDRAWN))
    low, high = means[int(0.025 * _REDRAWN)], means[int(0.975 * _REDRAWN)]
    return ObservingCost(batch, len(found), plain, _mean(added), _mean(added) / plain, low, high)


def _decode(llm: LLM, metrics: EngineMetrics, batch: int, pairs: int) -> list[tuple[float, float]]:
    """Run one batch; return the seconds (with metrics, without) of up to `pairs` pairs."""
    engine, known = llm.engine, llm.engine.model.num_token_ids
    room = min(engine.model.max_model_len, engine.pool.num_blocks // batch * engine.config.block_size)
    params = SamplingParams(max_tokens=min(room - _PROMPT, 400), temperature=0.0, ignore_eos=True)
    for i in range(batch):
        engine.add_request([(i + 7 * j) % known for j in range(_PROMPT)], params)
    while engine.stats()["waiting"]:
        engine.step()
    engine.step()
    found = list[tuple[float, float]]()
    for number in range(min(pairs, (params.max_tokens - 8) // 2)):
        first = _step(llm, metrics, is_on=number % 2 == 0)
        second = _step(llm, metrics, is_on=number % 2 == 1)
        found.append((first, second) if number % 2 == 0 else (second, first))
    engine.events.listeners.append(metrics)  # it sees the ends, and forgets the requests
    while engine.has_unfinished_requests():
        engine.step()
    return found


def _step(llm: LLM, metrics: EngineMetrics, is_on: bool) -> float:
    llm.engine.events.listeners = [metrics] if is_on else []
    started = time.thread_time()
    llm.engine.step()
    return time.thread_time() - started


def _mean(values: Sequence[float]) -> float:
    cut = int(len(values) * _TRIMMED)
    return statistics.fmean(sorted(values)[cut : len(values) - cut])
