"""`EngineMetrics` (contract C8): every figure follows from the events, in bounded memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
from recount import faults, figure_faults, recount, tenants

from minillm import LLM, MinillmError, SamplingParams
from minillm.errors import PartError
from minillm.observe.events import Event
from minillm.observe.metrics import percentile, summarize
from minillm.observe.online import EngineMetrics
from minillm.observe.report import report
from minillm.observe.tenant_use import MAX_LABELS, OTHER

PROMPTS = [[(7 * i + j) % 250 for j in range(length)] for i, length in enumerate((3, 40, 17, 90, 33, 64))]
PARAMS = SamplingParams(max_tokens=14, seed=1, ignore_eos=True)


def mixed(folder: Path, **options: Any) -> tuple[LLM, EngineMetrics, list[Event]]:
    """Requests that wait, fork, share, are preempted, drafted, aborted, overdue, refused and failed."""
    llm = tiny.load(
        folder,
        **{"kv_memory": tiny.blocks(14), "prefill_chunk": 16, "max_num_seqs": 6, "draft_model": "ngram"},
        adaptive_draft=False,
        **options,
    )
    engine = llm.engine
    engine.scheduler.headroom_tokens = 0
    metrics = EngineMetrics(engine)
    greedy = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    with engine.events.record() as trace:
        llm.warmup()
        ids = [engine.add_request(prompt, PARAMS, f"tenant {i % 2}") for i, prompt in enumerate(PROMPTS * 2)]
        ids += [
            engine.add_request([7] * 40, PARAMS, "tenant 1") for _ in range(3)
        ]  # they find each other's blocks
        engine.add_request([5, 6] * 9, greedy, "tenant 0")
        engine.add_request([3, 4] * 5, SamplingParams(max_tokens=9, seed=2, n=3, ignore_eos=True))
        engine.add_request([8], SamplingParams(max_tokens=9, deadline=1e-9))
        engine.abort_request(engine.add_request([9] * 20, PARAMS))  # it is never admitted
        for prompt, tenant in (([1] * 1000, "tenant 0"), ([], "tenant 9"), ([2], 7)):
            with pytest.raises(MinillmError):
                engine.add_request(prompt, PARAMS, tenant)  # type: ignore[arg-type]
        for step in range(300):
            if step == 9:
                engine.abort_request(ids[1])
            engine.step()
    return llm, metrics, trace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, EngineMetrics, list[Event]]:
    return mixed(tiny.make_folder(tmp_path_factory.mktemp("online") / "model"))


def test_every_figure_follows_from_the_events(run: tuple[LLM, EngineMetrics, list[Event]]) -> None:
    _, metrics, trace = run
    figures = metrics.steady
    assert faults(metrics, trace) == []
    assert set(figures.finished) == {"length", "cancelled", "deadline"} and len(figures.refused) == 2
    assert figures.preemptions and figures.cached_tokens and figures.drafted and figures.held
    assert figures.evicted and metrics.warmup.steps
    assert metrics.num_live == metrics.waiting == metrics.running == 0


KINDS = "queue admit sample finish step prefill_chunk speculate evict preempt refuse"


@pytest.mark.parametrize("kind", KINDS.split())
def test_control_an_event_that_was_lost_gives_other_figures(
    run: tuple[LLM, EngineMetrics, list[Event]], kind: str
) -> None:
    _, metrics, trace = run
    begun = next(i for i, event in enumerate(trace) if event.kind == "warmup" and event["phase"] == "end")
    lost = next(event for event in trace[begun:] if event.kind == kind)
    assert faults(metrics, [event for event in trace if event is not lost])


def test_a_recorded_run_gives_the_same_figures(run: tuple[LLM, EngineMetrics, list[Event]]) -> None:
    """Also after its data went through JSON, where tuples become lists."""
    _, metrics, trace = run
    stored = [Event(e.kind, e.step, e.time, e.request_id, json.loads(json.dumps(e.data))) for e in trace]
    for again in (EngineMetrics().replay(trace), EngineMetrics().replay(stored)):
        assert faults(again, trace) == []
        assert again.memory.blocks == metrics.memory.blocks


def test_the_exact_percentiles_are_close_to_those_of_the_histograms(
    run: tuple[LLM, EngineMetrics, list[Event]],
) -> None:
    _, metrics, trace = run
    summary = summarize([event for event in trace if event.request_id not in warm_ids(trace)])
    for name, exact in summary.percentiles().items():
        found = getattr(metrics.steady, name).percentiles((0.5, 0.9, 0.95, 0.99))
        assert found == pytest.approx(exact, rel=1 / 256), name
        assert exact[0] == percentile(getattr(summary, name), 0.5)


def warm_ids(trace: list[Event]) -> set[str]:
    end = next(i for i, event in enumerate(trace) if event.kind == "warmup" and event["phase"] == "end")
    return {event.request_id for event in trace[:end] if event.kind == "queue"}


def test_outputs_and_figures_agree(folder: Path) -> None:
    llm = tiny.load(folder)
    metrics = EngineMetrics(llm.engine)
    outputs = llm.generate(PROMPTS, PARAMS)
    for name in ("ttft", "tpot", "queue", "e2e"):
        values = [getattr(output.metrics, name) for output in outputs]
        assert (getattr(metrics.steady, name).max, getattr(metrics.steady, name).min) == (
            max(values),
            min(values),
        )
    assert metrics.steady.itl.max == max(gap for output in outputs for gap in output.metrics.itl)
    assert metrics.steady.output_tokens == sum(len(output.token_ids) for output in outputs)


def test_gauges_are_the_engine_s(folder: Path) -> None:
    llm = tiny.load(folder, kv_memory=tiny.blocks(20), max_num_seqs=2)
    engine, metrics = llm.engine, EngineMetrics(llm.engine)
    assert metrics.memory.headroom == metrics.memory.num_blocks == 20
    for prompt in PROMPTS:
        engine.add_request(prompt, PARAMS)
    while engine.has_unfinished_requests():
        stats, memory = engine.stats(), metrics.memory
        assert (metrics.waiting, metrics.running) == (stats["waiting"], stats["running"])
        assert (memory.used, memory.headroom) == (stats["used_blocks"], stats["free_blocks"])
        assert memory.cached == stats["cached_blocks"] and memory.num_blocks == stats["num_blocks"]
        engine.step()
    cache = engine.worker.runner.cache
    assert metrics.block_bytes * 20 == cache.nbytes == tiny.blocks(20)
    assert metrics.steady.held["seqs"] > 0


def test_listening_from_the_middle_of_a_run(folder: Path) -> None:
    """Requests that were there before have no latencies; their tokens count, and nothing of them is kept."""
    llm = tiny.load(folder, max_num_seqs=3)
    engine = llm.engine
    for prompt in PROMPTS:
        engine.add_request(prompt, PARAMS)
    for _ in range(3):
        engine.step()
    metrics = EngineMetrics(engine)
    with engine.events.record() as trace:
        engine.add_request([7, 8], PARAMS)
        while engine.has_unfinished_requests():
            engine.step()
    assert faults(metrics, trace) == [] and metrics.num_live == metrics.waiting == metrics.running == 0
    assert metrics.steady.e2e.count == 1 and metrics.steady.output_tokens > PARAMS.max_tokens


def test_another_engine_after_the_first(folder: Path) -> None:
    """Counts go on. Requests of the first engine are lost, and its events are no longer heard."""
    first, second = tiny.load(folder), tiny.load(folder, kv_memory=tiny.blocks(30))
    metrics = EngineMetrics(first.engine)
    first.engine.add_request([1, 2, 3], PARAMS)
    first.engine.step()
    metrics.attach(second.engine)
    assert (metrics.lost, metrics.num_live, metrics.running, metrics.num_blocks) == (1, 0, 0, 30)
    while first.engine.has_unfinished_requests():
        first.engine.step()
    second.generate([[4, 5]], PARAMS)
    assert metrics.steady.e2e.count == 1 and metrics.steady.requests == 2
    assert first.engine.events.listeners == [] and metrics.steady.output_tokens == 1 + PARAMS.max_tokens
    metrics.detach()
    assert second.engine.events.listeners == []


class _Fails:
    """A sampler that fails once, in the step with this number; or is interrupted."""

    def __init__(self, at: int, error: Callable[[], BaseException]) -> None:
        self.left, self.error = at, error

    def __call__(self, logits: Any, batch: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error()
        return logits.argmax(dim=-1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, lambda: PartError("broken", "")])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_steps_that_fail_or_are_interrupted(
    folder: Path, at: int, error: Callable[[], BaseException]
) -> None:
    llm = tiny.load(folder, parts={"sampler": _Fails(at, error)}, prefill_chunk=16)
    engine, metrics = llm.engine, EngineMetrics(llm.engine)
    with engine.events.record() as trace:
        for prompt in PROMPTS[:4]:
            engine.add_request(prompt, PARAMS)
        engine.add_request([4] * 5, SamplingParams(max_tokens=3, n=2, ignore_eos=True))
        while engine.has_unfinished_requests():
            with suppress(KeyboardInterrupt, PartError):
                engine.step()
    assert faults(metrics, trace) == []
    assert metrics.num_live == metrics.waiting == metrics.running == 0


def events_of(number: int, tenant: str = "a" * 16, n: int = 1) -> Iterator[Event]:
    """The events of one short request, made by hand."""
    request_id, at = f"req-{number}", 10.0 + number
    yield Event("queue", number, at, request_id, {"prompt_tokens": 5, "n": n, "prompt": "", "tenant": tenant})
    yield Event("admit", number, at + 0.1, request_id, {"cached_tokens": 2, "waited": 0.1})
    yield Event("prefill_chunk", number, at + 0.2, request_id, {"start": 2, "end": 5, "tokens": 5})
    for token in range(2):
        sampled = [(request_id, index) for index in range(n)]
        yield Event("sample", number, at + 0.3 + token / 8, "", {"requests": sampled})
    for index in range(n):
        fields = {"index": index, "reason": "length", "answer": ""}
        yield Event("finish", number, at + 0.6, request_id, fields)


def test_a_second_admit_replaces_the_first() -> None:
    """The step of the first was interrupted: neither its wait nor its cached tokens count."""
    trace = list(events_of(1))
    trace.insert(2, Event("admit", 2, 11.25, "req-1", {"cached_tokens": 4, "waited": 0.25}))
    metrics = EngineMetrics().replay(trace)
    assert faults(metrics, trace) == []
    assert metrics.steady.queue.max == 0.25 and metrics.steady.cached_tokens == 4
    assert summarize(trace).cached_tokens == 4 and summarize(trace).prompt_tokens == 5


def test_an_end_that_comes_twice_counts_once() -> None:
    trace = list(events_of(1, n=2))
    trace[-1:] = [trace[-2], trace[-1], trace[-1]]
    metrics = EngineMetrics().replay(trace)
    assert metrics.steady.finished == {"length": 1} and metrics.num_live == 0
    assert metrics.steady.output_sizes.max == 4 and metrics.running == 0


def many(count: int) -> EngineMetrics:
    """Metrics after so many requests, each of another tenant; a few are always unfinished."""
    metrics = EngineMetrics()
    for start in range(0, count, 4):
        own = [events_of(start + i, tenant=f"{start + i:016x}", n=1 + i % 2) for i in range(4)]
        for event in itertools.chain.from_iterable(zip(*map(list, own[::2]), strict=True)):
            metrics(event)
        for event in itertools.chain(*own[1::2]):
            metrics(event)
    return metrics


def check_bounded(metrics: EngineMetrics, count: int) -> None:
    assert metrics.num_live == 0 and metrics.steady.e2e.count == count
    assert len(metrics.tenants) == MAX_LABELS + 1
    assert sum(use.requests for _, use in metrics.tenants) == count
    assert dict(metrics.tenants)[OTHER].requests == count - MAX_LABELS
    histograms = [value for value in vars(metrics.steady).values() if hasattr(value, "num_buckets")]
    assert sum(h.num_buckets for h in histograms) < 200


def test_memory_is_bounded() -> None:
    check_bounded(many(2000), 2000)


@pytest.mark.slow
def test_memory_is_bounded_over_100_000_requests() -> None:
    check_bounded(many(100_000), 100_000)


def test_control_requests_that_never_end_are_kept() -> None:
    metrics = EngineMetrics()
    for number in range(50):
        metrics.replay(list(events_of(number))[:-1])
    assert metrics.num_live == 50


def test_no_name_and_no_text_is_in_the_figures(folder: Path) -> None:
    llm = tiny.load(folder)
    metrics = EngineMetrics(llm.engine)
    llm.warmup()
    for tenant in ("secret-tenant", "other secret"):
        llm.generate("the secret cat", PARAMS, tenant=tenant)
        with pytest.raises(MinillmError):
            llm.engine.add_request("a secret word " * 200, PARAMS, tenant)
    with pytest.raises(MinillmError):
        llm.engine.add_request("x", PARAMS, ["secret list"])  # type: ignore[arg-type]
    everything = json.dumps(report(metrics)) + repr(list(metrics.tenants)) + repr(metrics.startup)
    assert "secret" not in everything and "warmup-" not in everything
    assert len(report(metrics)["tenants"]) == 3 and dict(metrics.tenants)[OTHER].refused == 1


def test_who_reads_the_start_while_a_warm_up_ends_is_not_disturbed() -> None:
    """A scrape of another thread may be in the middle of it."""
    begin = {"phase": "begin", "load": 1.0, "compile": 0.0, "allocation": 0.5}
    metrics = EngineMetrics().replay([Event("warmup", 0, 1.0, "", begin)])
    reading = iter(metrics.startup.items())
    assert next(reading) == ("load", 1.0)
    metrics(Event("warmup", 0, 2.0, "", {"phase": "end", "first": 0.1, "again": 0.1, "requests": 2}))
    assert list(reading) == [("compile", 0.0), ("allocation", 0.5)]
    assert metrics.startup == {"load": 1.0, "compile": 0.0, "allocation": 0.5, "first": 0.1, "again": 0.1} | {
        "requests": 2
    }


def test_the_report_is_the_figures(run: tuple[LLM, EngineMetrics, list[Event]]) -> None:
    _, metrics, trace = run
    found, expected = report(metrics), recount(trace)
    for name in ("ttft", "itl", "e2e"):
        spread, values = found["steady"][name], expected[name]
        assert (spread["count"], spread["max"]) == (len(values), max(values))
        assert spread["p99"] == pytest.approx(percentile(values, 0.99), rel=1 / 256)
    assert found["steady"]["refused"] == expected["refused"]
    assert found["steady"]["tokens_per_wall_second"] == expected["output_tokens"] / expected["wall_seconds"]
    assert found["steady"]["tokens_per_busy_second"] == pytest.approx(
        expected["output_tokens"] / sum(expected["step_seconds"])
    )
    assert found["memory"]["headroom_bytes"] == 14 * metrics.block_bytes
    assert set(found["tenants"]) == set(tenants(trace))
    assert figure_faults(metrics.warmup, recount(trace, warm=True)) == []
