"""Contract C6 under Ctrl-C at any point of a step: a step is all or nothing.

A step is interrupted at a line, or after a call, inside the package. Then the engine continues. Every request
must end exactly once, with the tokens and log-probabilities of an undisturbed run or with a typed error.
Every block must be free at the end. A new request must get the known answer. The events must show that every
allocated block was freed. The short form tests a fixed selection of the points; the long form tests all.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from interrupts import Points
from scenarios import LONG, SCENARIOS, Stage, drawn, greedy

from minillm import SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import StepInterrupted

KINDS = ["lines", "calls"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage") / "model")


def count_points(stage: Stage, name: str, step: int, kind: str) -> int:
    points = Points(kind=kind)
    stage.run(name, step, lambda engine: points.around(engine.step)())
    return points.count


def disturb(stage: Stage, name: str, step: int, points: Points, *more: Points) -> list[str]:
    """Interrupt at `points`, again in the recovery and in the next step (`more`); return what is wrong."""

    def interrupted(engine: Engine) -> Any:
        for method, others in zip(("_recover", "_recover_unfinished"), more, strict=False):
            setattr(engine, method, others.around(getattr(engine, method)))
        return points.around(engine.step)()

    run = stage.run(name, step, interrupted)
    for others in more:
        others.target = None  # no more interrupts while the end is checked
    told = "_deliver_all" not in f"{points.where} {[p.where for p in more]}"  # else the trace lacks an event
    # An interrupt between a token and its event changes the times in the trace: the metrics are not compared.
    found = stage.faults(name, run, check_trace=told, check_metrics=not points.where)
    found += [f"raised {error!r}" for error in run.raised if not isinstance(error, KeyboardInterrupt)]
    errors = [run.outputs[i].error for i in run.outputs]
    found += [f"ended with {e!r}" for e in errors if e is not None and not isinstance(e, StepInterrupted)]
    if points.where and not run.raised:
        found.append("the interrupt did not reach the caller")
    return [f"{name}, step {step}, {points.where} {[p.where for p in more]}: {fault}" for fault in found]


def sweep(stage: Stage, name: str, kind: str, stride: int) -> list[str]:
    found = []
    for step in SCENARIOS[name].disturbed:
        for target in range(step % stride, count_points(stage, name, step, kind), stride):
            found += disturb(stage, name, step, Points(target, kind))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupt_at_some_points(stage: Stage, name: str, kind: str) -> None:
    assert stage.faults(name, stage.run(name)) == [], "control: without an interrupt"
    assert sweep(stage, name, kind, stride=43) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupt_at_every_point(stage: Stage, name: str, kind: str) -> None:
    assert sweep(stage, name, kind, stride=1) == []


@pytest.mark.parametrize("stride", [211, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_second_and_a_third_interrupt(stage: Stage, name: str, stride: int) -> None:
    """The second interrupt comes during recovery, the third during recovery in the next step."""
    found = []
    for step in SCENARIOS[name].disturbed:
        for target in range(stride // 2, count_points(stage, name, step, "lines"), stride):
            second, third = (target * 31) % 307, (target * 17) % 211
            found += disturb(stage, name, step, Points(target), Points(second), Points(third))
    assert found == []


def test_the_scenarios_pass_through_every_phase(stage: Stage) -> None:
    """Each scenario runs the phases that its name promises."""
    kinds = {name: {event.kind for event in stage.run(name).trace} for name in SCENARIOS}
    for name, kind in {
        "prefix": "share",
        "chain": "speculate",
        "tree": "speculate",
        "preempt": "preempt",
        "fork": "copy_on_write",
        "abort": "cancel",
    }.items():
        assert kind in kinds[name], name


@pytest.mark.parametrize("broken", ["_recover", "put_back", "fail", "free_all"])
def test_a_broken_recovery_is_noticed(stage: Stage, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The control: if one function of the recovery is missing, some interrupts do harm."""
    stage.expected("tree"), stage.fresh()
    if broken == "_recover":
        monkeypatch.setattr(Engine, "_recover", lambda self, error: self.events.release())
    elif broken == "put_back":
        monkeypatch.setattr("minillm.engine.engine.put_back", lambda *args: None)
        monkeypatch.setattr("minillm.memory.block_table.BlockTable.truncate", lambda self, num_tokens: 0)
    elif broken == "fail":
        monkeypatch.setattr(
            "minillm.engine.sequence.Sequence.is_changing",
            property(lambda s: False, lambda s, v: None),
            raising=False,
        )
    else:
        monkeypatch.setattr("minillm.observe.events.Events.free_all", lambda self: None)
    assert sweep(stage, "tree", "lines", stride=61) != []


# ---- the whole of generate, and real signals --------------------------------------------------------


@pytest.fixture(scope="module")
def folder(stage: Stage) -> Path:
    return stage.folder


def answer_of(output: Any) -> tuple[Any, ...]:
    return output.token_ids, output.logprobs, output.finish_reason, output.text


@pytest.mark.parametrize("stride", [331, pytest.param(5, marks=pytest.mark.slow)])
def test_an_interrupt_anywhere_in_generate(folder: Path, stride: int) -> None:
    """An open stream is right or ends with an error; no request of the interrupted call is left."""
    llm = tiny.load(folder, backend="native", kv_memory="1MiB")
    one, many = drawn(8), [greedy(3, n=2), drawn(4)]
    right = answer_of(llm.generate([5, 6], one)[0])
    counted = Points()
    expected = counted.around(lambda: list(map(answer_of, llm.generate([LONG, [7]], many))))()
    for target in range(stride // 2, counted.count, stride):
        stream = llm.stream([5, 6], one)
        next(stream)
        points = Points(target)
        with pytest.raises(KeyboardInterrupt):
            points.around(lambda: llm.generate([LONG, [7]], many))()
        output = stream.result
        assert answer_of(output) == right or isinstance(output.error, StepInterrupted), points.where
        assert list(map(answer_of, llm.generate([LONG, [7]], many))) == expected, points.where
        assert tiny.all_free(llm) and not llm._delivery._mailbox, points.where


def test_an_interrupt_anywhere_in_add_request_and_stream(folder: Path) -> None:
    """The caller gets the request's id, or nothing is queued, or the request ends at the next step."""
    llm = tiny.load(folder, backend="native", kv_memory="1MiB")
    one = drawn(3)
    right = answer_of(llm.generate([5, 6], one)[0])
    counted = Points()
    counted.around(lambda: llm.stream([5, 6], one))()
    for target in range(0, counted.count, 3):
        points = Points(target)
        with pytest.raises(KeyboardInterrupt):
            points.around(lambda: llm.stream([5, 6], one))()
        for _ in range(2):  # a queued request whose id was lost ends without being computed
            llm.engine.step() if llm.engine.has_unfinished_requests() else None
        assert tiny.all_free(llm), points.where
        assert answer_of(llm.generate([5, 6], one)[0]) == right, points.where


@pytest.fixture
def alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# An interrupt in a destructor is lost: the interpreter reports it and continues.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("rounds", [60, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{}, {"draft_model": "ngram", "adaptive_draft": False}])
def test_real_signals(folder: Path, alarm: None, rounds: int, options: dict[str, Any]) -> None:
    """SIGALRM with the handler of Ctrl-C, at random times of a `generate` call while a stream is open."""
    llm = tiny.load(folder, backend="native", kv_memory="1MiB", **options)
    chance, one = random.Random(3), drawn(12)
    many = [SamplingParams(max_tokens=10, seed=i, ignore_eos=True) for i in range(6)]
    prompts = [LONG[: 9 + i] for i in range(6)]
    right = answer_of(llm.generate([5, 6], one)[0])
    started = time.perf_counter()
    expected = [o.token_ids for o in llm.generate(prompts, many)]
    span = time.perf_counter() - started
    interrupted = 0
    with llm.engine.events.record():
        for _ in range(rounds):
            stream = llm.stream([5, 6], one)
            next(stream)
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0005, span))
                llm.generate(prompts, many)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            output = stream.result
            assert answer_of(output) == right or isinstance(output.error, StepInterrupted)
            assert not torch.is_inference_mode_enabled()
    assert interrupted > rounds / 4
    assert [o.token_ids for o in llm.generate(prompts, many)] == expected
    assert tiny.all_free(llm)
