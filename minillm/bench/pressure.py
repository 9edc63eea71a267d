"""A demonstration under pressure: the engine is warmed, runs clean, then only context and concurrency grow.

    stage        1        2        3        4        5        6
    requests     1        4        8       16       24       32      at once, each with a prompt of
    context     64      128      256      512      768     1024      so many tokens
    blocks     [#...   ] [##..  ] [####  ] [######] [######] [######]     the pool stays the same
                                               first preemption: the pool is full

Nothing else changes, so every number that moves moves because of memory or batching. Each stage's figures
come from its events alone. The same load with other budgets shows how many blocks a service level needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from minillm.bench.engine import make_prompt
from minillm.bench.machine import describe
from minillm.bench.parts import Load
from minillm.config import SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import UsageError
from minillm.llm import LLM
from minillm.memory.block_table import blocks_for
from minillm.observe.events import Event
from minillm.observe.metrics import percentile, summarize
from minillm.observe.slo import Slo

NEW_TOKENS = 96  # more than the scheduler's headroom, so that a full pool preempts
PERCENTILES = (0.5, 0.9, 0.95, 0.99)


class Stage(NamedTuple):
    """Requests at once, and the tokens of each prompt."""

    requests: int
    context: int

    @property
    def tokens(self) -> int:
        """All tokens that are in the cache at the end, if nothing is preempted."""
        return self.requests * (self.context + NEW_TOKENS)


STAGES = (Stage(1, 64), Stage(4, 128), Stage(8, 256), Stage(16, 512), Stage(24, 768), Stage(32, 1024))


class Watcher:
    """Follows a run. This one does nothing; `minillm demo pressure` draws."""

    def begin(self, number: int, engine: Engine) -> None:
        """A stage begins: the engine is warm, no request of it has been added."""

    def step(self, engine: Engine) -> None:
        """A step has ended."""

    def end(self, row: dict[str, Any]) -> None:
        """The stage has ended with these figures."""


def is_kept(slo: Slo, row: dict[str, Any]) -> bool:
    """Whether the p99 of a stage keep the limits of the time to the first token and of each gap."""
    return bool(row["ttft_s"]["p99"] <= slo.ttft and row["itl_s"]["p99"] <= slo.itl)


def fitting(stages: Iterable[Stage], max_model_len: int) -> list[Stage]:
    """The stages whose requests fit the context of a model."""
    return [stage for stage in stages if stage.context + NEW_TOKENS <= max_model_len]


def require_fitting(stages: Iterable[Stage], max_model_len: int) -> list[Stage]:
    """The same, at least one.

    Raises:
        UsageError: none fits.
    """
    if found := fitting(stages, max_model_len):
        return found
    raise UsageError(
        f"no stage of the load fits a context of {max_model_len} tokens",
        f"the smallest has {min(s.context for s in stages) + NEW_TOKENS}; choose a larger --max-model-len",
    )


def tight_budget(stages: Sequence[Stage], block_size: int, block_bytes: int) -> int:
    """Bytes of a pool that the stage in the middle fills: those after it are under pressure."""
    stage = stages[len(stages) // 2]
    return stage.requests * blocks_for(stage.context + NEW_TOKENS, block_size) * block_bytes


def run_pressure(
    load: Load,
    budgets: Sequence[int | str],
    slo: Slo,
    stages: Sequence[Stage] = STAGES,
    watcher: Watcher = Watcher(),  # noqa: B008  it has no state
) -> dict[str, Any]:
    """Run all stages under each KV budget, one after the other.

    A stage of which one request alone is larger than the pool is not run: `too_large` lists it.

    Args:
        load: makes the model with changed options.
        budgets: `kv_memory` of each run.

    Raises:
        UsageError: no stage fits the context of the model.
    """
    runs = []
    for budget in budgets:
        llm = load(kv_memory=budget, prefix_caching=False, max_num_seqs=max(s.requests for s in stages))
        pool = llm.engine.pool
        chosen = require_fitting(stages, llm.engine.model.max_model_len)
        able = [s for s in chosen if blocks_for(s.context + NEW_TOKENS, pool.block_size) <= pool.num_blocks]
        rows = [_stage(llm, stage, number, watcher) for number, stage in enumerate(able)]
        kept = [row["requests"] for row in rows if is_kept(slo, row)] if slo.limits else None
        found = {"kv_memory": str(budget), "num_blocks": pool.num_blocks, "stages": rows, "kept": kept}
        runs.append(found | {"too_large": [stage._asdict() for stage in chosen if stage not in able]})
        del llm
    limits = {name: slo.limits.get(name) for name in ("ttft", "itl")}
    return {"runs": runs, "slo": limits, "new_tokens": NEW_TOKENS, "machine": describe()}


def warm_up(llm: LLM, stage: Stage) -> None:
    """One request of this size, so that no first call is in the figures."""
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    llm.generate([make_prompt(llm, stage.context, 1 << 20)], params)


def _stage(llm: LLM, stage: Stage, number: int, watcher: Watcher) -> dict[str, Any]:
    warm_up(llm, stage)
    watcher.begin(number, llm.engine)
    engine, params = llm.engine, SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    with engine.events.record() as trace:
        for i in range(stage.requests):
            engine.add_request(make_prompt(llm, stage.context, i), params)
        while engine.has_unfinished_requests():
            engine.step()
            watcher.step(engine)
    row = stage._asdict() | figures(trace, engine.pool.num_blocks)
    watcher.end(row)
    return row


def figures(trace: Sequence[Event], num_blocks: int) -> dict[str, Any]:
    """The figures of a stage, from its events."""
    summary = summarize(trace)
    steps = [event for event in trace if event.kind == "step"]
    first = min(request.submitted for request in summary.requests.values())
    last = max(request.latest for request in summary.requests.values())
    shares = [event["waste"] / event["slots"] for event in steps if event["slots"]]
    return {
        "ttft_s": spread(summary.ttft),
        "itl_s": spread(summary.itl),
        "queue_s": spread([request.queue for request in summary.requests.values()]),
        "e2e_s": spread([request.e2e for request in summary.requests.values()]),
        "tokens_per_s": summary.output_tokens / (last - first) if last > first else 0.0,
        "prefill_tokens": summary.prefill_tokens,
        "preemptions": summary.preemptions,
        "peak_used_blocks": summary.peak_used_blocks,
        "headroom_blocks": num_blocks - summary.peak_used_blocks,
        "fragmentation": max(shares, default=0.0),
        "steps": len(steps),
    }


def holds_up_to(run: dict[str, Any]) -> int:
    """The most requests at once for which, and for all fewer, a run kept its service level; 0: for none."""
    kept = takewhile(lambda requests: requests in run["kept"], [s["requests"] for s in run["stages"]])
    return max(kept, default=0)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The percentiles of some times."""
    return {f"p{round(100 * share)}": percentile(values, share) for share in PERCENTILES}
