"""`LLM.warmup`: first calls are out of the way, apart in the metrics, and change no later answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from recount import faults

from minillm import LLM, SamplingParams, TenantLimits
from minillm.observe.online import EngineMetrics

PARAMS = SamplingParams(max_tokens=8, ignore_eos=True)
PROMPTS = [[5, 6, 7], [8] * 40, [9] * 17]


def test_it_is_kept_apart(folder: Path) -> None:
    llm = tiny.load(folder)
    metrics = EngineMetrics(llm.engine)
    with llm.engine.events.record() as trace:
        found = llm.warmup()
        llm.generate(PROMPTS, PARAMS)
        llm.warmup()
        llm.generate(PROMPTS, PARAMS)
    assert faults(metrics, trace) == []
    assert metrics.warmup.requests == 2 * found.requests == 14 and metrics.steady.requests == 6
    assert metrics.steady.output_tokens == 6 * 8 and len(metrics.tenants) == 1
    first, *_ = [event for event in trace if event.kind == "warmup"]
    assert (first["load"], first["allocation"]) == (found.load, found.allocation)
    assert found.load > 0 and found.allocation > 0 and found.compile == llm.engine.model.compile_seconds
    assert metrics.startup["first"] > 0 and metrics.startup["again"] > 0
    assert tiny.all_free(llm)


def test_control_without_the_events_it_counts_as_the_rest(folder: Path) -> None:
    llm = tiny.load(folder)
    with llm.engine.events.record() as trace:
        llm.warmup()
    plain = EngineMetrics().replay([event for event in trace if event.kind != "warmup"])
    assert plain.steady.requests == 7 and plain.warmup.requests == 0


@pytest.mark.parametrize("options", [{}, {"draft_model": "ngram"}, {"tenant_limits": True}])
def test_later_answers_are_the_same(folder: Path, options: dict[str, object]) -> None:
    """Default seeds, tokens and cached prefixes; also where tenants have limits."""
    if options.get("tenant_limits"):
        options = {"tenant_limits": {"a": TenantLimits(guaranteed_blocks=8, guaranteed_tokens_per_step=16)}}

    def answers(is_warm: bool) -> list[tuple[list[int], int, int]]:
        llm = tiny.load(folder, **options)
        if is_warm:
            llm.warmup()
        outputs = [o for tenant in (None, "a") for o in llm.generate(PROMPTS, PARAMS, tenant=tenant)]
        return [(o.token_ids, o.outputs[0].seed, o.metrics.cached_tokens) for o in outputs]

    assert answers(True) == answers(False)


def test_only_what_fits_is_run(folder: Path) -> None:
    small = tiny.load(folder, kv_memory=tiny.blocks(1), max_num_seqs=1)
    assert 2 <= small.warmup().requests < tiny.load(folder).warmup().requests
    assert small.generate(PROMPTS[:1], PARAMS)[0].finish_reason == "length"


def test_a_warm_up_that_fails_ends(folder: Path) -> None:
    def failing(logits: object, batch: object) -> object:
        raise RuntimeError("the sampler")

    llm: LLM = tiny.load(folder, parts={"sampler": failing})
    metrics = EngineMetrics(llm.engine)
    with llm.engine.events.record() as trace, pytest.raises(RuntimeError, match="the sampler"):
        llm.warmup()
    assert [event["phase"] for event in trace if event.kind == "warmup"] == ["begin", "end"]
    assert metrics.startup["requests"] == 0 and metrics.steady.steps == 0 and metrics.num_live == 0


def test_requests_from_before_stay_where_they_were(folder: Path) -> None:
    """A request that was queued before a warm-up and runs through it is none of the warm-up."""
    llm = tiny.load(folder)
    metrics = EngineMetrics(llm.engine)
    with llm.engine.events.record() as trace:
        stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=30, ignore_eos=True))
        next(stream)
        llm.warmup()
        assert stream.result.finish_reason == "length"
    assert faults(metrics, trace) == []
    assert metrics.steady.e2e.count == 1 and metrics.steady.output_tokens == 30
