"""How cost grows with size: five curves, and how steep each one ends.

    curve           along                                  measured                       should be
    context         tokens in the cache of one sequence    CPU time of a decode step      linear
    batch           running sequences                      CPU time of `schedule`         linear
    queue           waiting requests                       CPU time of `add_request`      flat
                                                           and of a step                  flat
    prefix cache    cached blocks                          CPU time of a lookup           flat
    requests        requests served so far                 memory of the process          flat

A curve is judged by its slope on logarithmic axes between its last two points: 0 is flat, 1 is linear, 2
means that twice the size takes four times as long. Times are CPU times, so other programs on the machine
disturb them little; each point is the median of several, with one thread.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from minillm.bench.dry import DryEngine
from minillm.bench.engine import make_prompt
from minillm.bench.machine import describe
from minillm.bench.parts import Load, Progress, no_progress, run_parts
from minillm.config import EngineConfig, SamplingParams
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import PrefixCache, Scope

CONTEXTS = (256, 512, 1024, 2048, 3840)
BATCHES = (64, 256, 1024, 4096)
QUEUES = (200, 2_000, 20_000, 100_000)
CACHES = (1_000, 10_000, 100_000)
SERVED = 100_000
BLOCK = 16

Point = tuple[int, float]


def run_growth(
    load: Load, runs: int = 9, served: int = SERVED, progress: Progress = no_progress
) -> dict[str, Any]:
    """Measure all curves.

    Args:
        load: makes the model with changed options.
        runs: measurements of each point.
        served: requests of the memory curve.
    """
    parts: dict[str, Callable[[], Any]] = {
        "context": lambda: curve("decode step, seconds", decode_over_context(load, runs)),
        "batch": lambda: curve("schedule, seconds", schedule_over_batch(runs)),
        "queue": lambda: _over_queue(load, runs),
        "cache": lambda: curve("lookup of 32 blocks, seconds", lookup_over_cache(runs)),
        "requests": lambda: curve("resident memory, bytes", memory_over_requests(load, served)),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread that waits for another one spins, and its CPU time would count
    try:
        found = run_parts(parts, progress)
    finally:
        torch.set_num_threads(threads)
    queue = found.pop("queue")
    return {**found, **queue, "machine": describe()}


def curve(what: str, points: Sequence[Point]) -> dict[str, Any]:
    """A curve with the slope between its last two points."""
    (x0, y0), (x1, y1) = points[-2:]
    return {"what": what, "points": list(points), "slope": math.log(y1 / y0) / math.log(x1 / x0)}


def _cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU time of one call, of all threads of the process."""
    start = time.process_time()
    call()
    return time.process_time() - start


def _median(call: Callable[[], Any], runs: int) -> float:
    return statistics.median(_cpu_seconds(call) for _ in range(runs))


# ---- context ----------------------------------------------------------------------------------------


def decode_over_context(load: Load, runs: int) -> list[Point]:
    """A decode step of one sequence with more and more tokens in its cache."""
    llm, points = load(max_num_seqs=1, prefix_caching=False), list[Point]()
    for context in CONTEXTS:
        if context + runs + 2 > llm.engine.model.max_model_len:
            break
        params = SamplingParams(max_tokens=runs + 2, temperature=0, ignore_eos=True)
        request_id = llm.engine.add_request(make_prompt(llm, context, context), params)
        while not any(output.token_ids for output in llm.engine.step()):
            pass  # prefill
        points.append((context, _median(llm.engine.step, runs)))
        llm.engine.abort_request(request_id)
        llm.engine.step()
    return points


# ---- batch ------------------------------------------------------------------------------------------


def schedule_over_batch(runs: int) -> list[Point]:
    """`schedule` with more and more running sequences; no model is run."""
    return [(batch, _median_schedule(batch, runs)) for batch in BATCHES]


def _median_schedule(batch: int, runs: int) -> float:
    config = EngineConfig(max_num_seqs=batch, max_num_batched_tokens=2 * batch, block_size=BLOCK)
    engine = DryEngine(config, num_blocks=4 * batch)
    for _ in range(batch):
        engine.add(prompt_tokens=1, new_tokens=40)
    engine.step()  # all start
    return _median(lambda: engine.scheduler.schedule(1.0), runs)


# ---- queue ------------------------------------------------------------------------------------------


def _over_queue(load: Load, runs: int) -> dict[str, Any]:
    rows = [(waiting, *_queue_point(load, waiting, runs)) for waiting in QUEUES]
    return {
        "queue_add": curve("add_request, seconds", [(n, add) for n, add, _ in rows]),
        "queue_step": curve("step, seconds", [(n, step) for n, _, step in rows]),
    }


def _queue_point(load: Load, waiting: int, runs: int) -> tuple[float, float]:
    """(`add_request`, a step of eight sequences) while `waiting` requests wait."""
    engine = load(max_num_seqs=8, max_queued_requests=1 << 20, max_queued_tokens=1 << 30).engine
    forever = SamplingParams(max_tokens=200 + runs, temperature=0, ignore_eos=True)
    for i in range(8):
        engine.add_request([5 + i] * 20, forever)
    engine.step()
    for i in range(waiting):
        engine.add_request([7, 8, 9 + i % 50], forever)
    engine.step()
    add = _median(lambda: [engine.add_request([7, 8, 9], forever) for _ in range(20)], runs) / 20
    engine.step()
    return add, _median(engine.step, runs)


# ---- prefix cache -----------------------------------------------------------------------------------


def lookup_over_cache(runs: int) -> list[Point]:
    """The lookup of 32 blocks, digests included, in a cache of more and more blocks."""
    return [(size, _median_lookup(size, runs)) for size in CACHES]


def _median_lookup(size: int, runs: int) -> float:
    pool, scope, chain = BlockPool(size, BLOCK), Scope("growth"), 32
    cache, last = PrefixCache(pool), None
    for i, block_id in enumerate(pool.allocate(size)):
        if i % chain == 0:
            last = None
        ids = [i, *range(1, BLOCK)]
        digest = cache.digest(scope, last.digest if last else None, ids)
        last = cache.publish(scope, last, ids, digest, block_id)

    def look_up(first: int) -> None:
        digests, blocks = list[bytes](), list[list[int]]()
        for i in range(first, first + chain):
            blocks.append([i, *range(1, BLOCK)])
            digests.append(cache.digest(scope, digests[-1] if digests else None, blocks[-1]))
        if len(cache.match(scope, zip(digests, blocks, strict=True))) != chain:
            raise RuntimeError("the cache has lost a block")

    def look_everywhere() -> None:
        for i in range(20):
            look_up(chain * (i * 7919 % (size // chain)))

    return _median(look_everywhere, runs) / 20


# ---- memory -----------------------------------------------------------------------------------------


def memory_over_requests(load: Load, served: int) -> list[Point]:
    """Resident memory of the process while `served` short requests come and go, ten times on the way.

    The first tenth is not counted: buffers and caches grow to their size in it.
    """
    engine, points = load(max_num_seqs=256, kv_memory="32MiB").engine, list[Point]()
    params = SamplingParams(max_tokens=1, temperature=0, deadline=3600.0)
    for number in range(served):
        engine.add_request([5 + number % 97, 6, 7], params, tenant=f"tenant {number % 1000}")
        if number % 256 == 255:
            engine.step()
        if number and number % (served // 10) == 0:
            gc.collect()
            points.append((number, _resident_bytes()))
    while engine.has_unfinished_requests():
        engine.step()
    return [*points, (served, _resident_bytes())]


def _resident_bytes() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return float(pages * 4096)
