"""Several threads, a forked child, copies, destructors: every call ends, with an answer or a typed error."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from minillm import LLM, SamplingParams
from minillm.engine.outputs import RequestOutput
from minillm.errors import EngineBusy, ForkedEngine, UsageError
from minillm.llm import TextIterator
from minillm.text.detokenizer import Detokenizer
from minillm.worker.decode import decode

PROMPT = list(range(20, 37))


def drawn(tokens: int, seed: int = 1, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, seed=seed, ignore_eos=True, **more)


def in_threads(*works: Callable[[], Any], seconds: float = 60.0) -> list[Any]:
    """What each call returns or raises; the test fails if one does not end."""
    results: list[Any] = [None] * len(works)

    def run(index: int) -> None:
        try:
            results[index] = works[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    return results


@pytest.fixture(autouse=True)
def often() -> Any:
    """Python switches between threads far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


# ---- several threads -------------------------------------------------------------------------------


def test_generate_and_streams_from_several_threads(folder: Path) -> None:
    llm = tiny.load(folder)
    expected = [tiny.load(folder).generate([PROMPT, [5]], drawn(9, seed))[0].token_ids for seed in range(6)]

    def generate(seed: int) -> list[int]:
        return llm.generate([PROMPT, [5]], drawn(9, seed))[0].token_ids

    def stream(seed: int) -> list[int]:
        pieces = llm.stream(PROMPT, drawn(9, seed))
        text = "".join(pieces)
        assert text == pieces.result.text
        return pieces.result.token_ids

    works = [lambda s=s: (generate if s % 2 else stream)(s) for s in range(6)]  # type: ignore[misc]
    assert in_threads(*works) == expected
    assert tiny.all_free(llm)


def test_steps_of_several_threads_lose_no_output(folder: Path) -> None:
    """Each output is returned to exactly one of the stepping threads."""
    llm = tiny.load(folder, max_queued_requests=10_000)
    engine, submitting = llm.engine, threading.Event()
    finals: list[str] = []

    def submit() -> list[str]:
        ids = [engine.add_request([5 + i % 9, 7], drawn(1 + i % 4, i)) for i in range(150)]
        submitting.set()
        return ids

    def step() -> None:
        while not submitting.is_set() or engine.has_unfinished_requests():
            finals.extend(o.request_id for o in engine.step() if o.finished)

    results = in_threads(submit, step, step, step)
    assert results[1:] == [None] * 3
    assert sorted(finals) == sorted(results[0])
    assert tiny.all_free(llm)


def test_an_abort_storm(folder: Path) -> None:
    """Many threads abort random requests, each many times: every request ends exactly once."""
    llm = tiny.load(folder, max_queued_requests=10_000)
    engine, ids, finals = llm.engine, list[str](), list[RequestOutput]()
    done = threading.Event()

    def submit(worker: int) -> None:
        for i in range(40):
            ids.append(engine.add_request([5 + worker, i + 5], drawn(1 + i % 7, i, n=1 + i % 2)))

    def abort() -> None:
        chance = random.Random(7)
        while not done.is_set():
            for _ in range(20):
                engine.abort_request(chance.choice(ids) if ids else "nobody")
            engine.abort_request("req-99999")
            time.sleep(0.001)

    def serve() -> None:
        while len(finals) < 120:
            finals.extend(o for o in engine.step() if o.finished)
        done.set()

    results = in_threads(*(lambda w=w: submit(w) for w in range(3)), abort, serve)  # type: ignore[misc]
    assert results == [None] * 5
    assert sorted(o.request_id for o in finals) == sorted(ids)
    assert {o.finish_reason for o in finals} <= {"length", "cancelled"}
    assert engine.step() == [] and tiny.all_free(llm)


def test_a_stream_closed_and_dropped_in_another_thread(folder: Path) -> None:
    llm = tiny.load(folder)
    streams = [llm.stream([5, i + 6], drawn(200, i)) for i in range(6)]

    def read(stream: Any) -> str:
        return "".join(stream)

    def close(stream: Any) -> str:
        return str(stream.close())

    works = [lambda s=s: read(s) for s in streams[:3]] + [lambda s=s: close(s) for s in streams[:3]]  # type: ignore[misc]
    rest = streams[3:]
    streams.clear()
    results = in_threads(*works, rest.clear, lambda: llm.generate([7], drawn(5)))
    assert not any(isinstance(result, BaseException) for result in results)
    llm.generate([7], drawn(1))
    assert tiny.all_free(llm)


def test_steps_inside_a_step_are_refused_and_others_wait(folder: Path) -> None:
    found: list[Any] = []

    def nosy(runner: Any, rows: Any) -> Any:
        for call in (llm.engine.step, lambda: llm.generate([5], drawn(1)), lambda: llm.logits([5])):
            try:
                found.append(call())
            except BaseException as error:
                found.append(type(error))
        return decode(runner, rows)

    llm = tiny.load(folder, parts={"decode_loop": nosy})
    (result,) = in_threads(lambda: llm.generate([PROMPT], drawn(3))[0].token_ids)
    assert result == tiny.load(folder).generate([PROMPT], drawn(3))[0].token_ids
    assert set(found) == {EngineBusy}
    assert len(llm.generate([PROMPT], drawn(1))) == 1 and tiny.all_free(llm)


# ---- a forked child --------------------------------------------------------------------------------


def in_child(work: Callable[[], Any], seconds: float = 20.0) -> str:
    """The name of the exception that `work` raises in a forked child; "hangs" if it does not return."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = f"returned {work()!r}"
        except BaseException as error:
            result = type(error).__name__
        os.write(write, result.encode())
        os._exit(0)
    os.close(write)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            with os.fdopen(read, "rb") as pipe:
                return pipe.read().decode()
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    return "hangs"


# Python warns about forking a process with several threads; here this is intended.
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a step of another thread"])
def test_a_forked_child_gets_a_typed_error(folder: Path, busy: bool) -> None:
    """Also if a thread that does not exist in the child held every lock."""
    inside, leave = threading.Event(), threading.Event()

    def slow(runner: Any, rows: Any) -> Any:
        if busy:
            inside.set()
            leave.wait(60)
        return decode(runner, rows)

    llm = tiny.load(folder, parts={"decode_loop": slow})
    stream = llm.stream(PROMPT, drawn(9))
    other = threading.Thread(target=lambda: llm.generate([PROMPT], drawn(3)), daemon=True)
    if busy:
        other.start()
        assert inside.wait(30)
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: llm.generate([5], drawn(1)),
        "chat prompt": lambda: llm.generate("a cat", drawn(1)),
        "stream": lambda: llm.stream([5], drawn(1)),
        "next": lambda: next(stream),
        "result": lambda: stream.result,
        "close": stream.close,
        "logits": lambda: llm.logits([5, 6]),
        "step": llm.engine.step,
        "add_request": lambda: llm.engine.add_request([5]),
        "stats": llm.engine.stats,
        "has_unfinished": llm.engine.has_unfinished_requests,
    }
    found = {name: in_child(call) for name, call in calls.items()}
    assert found == dict.fromkeys(calls, ForkedEngine.__name__)
    assert in_child(lambda: stream.__del__()) == "returned None"
    assert in_child(lambda: llm.engine.abort_request(stream.request_id)) == "returned None"
    leave.set()
    if busy:
        other.join(60)
    assert stream.result.finish_reason == "length", "the parent continues"


# ---- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_copies_are_refused_in_words(llm: LLM, take: Callable[[Any], Any]) -> None:
    stream = llm.stream(PROMPT, drawn(9))
    next(stream)
    for thing in (llm, llm.engine, stream):
        with pytest.raises(UsageError, match="copied or pickled"):
            take(thing)
    with pytest.raises(UsageError, match="copied or pickled"):
        take([{"session": stream}]) if take is not copy.copy else take(stream)
    assert stream.result.finish_reason == "length", "copying did not end it"
    answer = llm.generate([5], drawn(2))[0]
    assert copy.deepcopy(answer) == answer, "an output can be copied"


# ---- destructors -----------------------------------------------------------------------------------


def test_streams_collected_at_any_moment(folder: Path) -> None:
    """Streams are dropped in reference cycles; the collector runs inside add_request, steps and listeners."""

    class Collecting(Detokenizer):
        def __init__(self, *args: Any) -> None:
            gc.collect()
            super().__init__(*args)

        def push(self, token_id: int) -> str:
            gc.collect()
            return super().push(token_id)

    class Session:
        pass

    llm = tiny.load(folder, parts={"detokenizer": Collecting})
    llm.engine.events.listeners.append(lambda event: gc.collect(0))

    def work() -> int:
        for i in range(8):
            session: Any = Session()
            session.stream, session.itself = llm.stream([5, 6 + i], drawn(9)), session
            next(session.stream)
        del session
        gc.collect()
        llm.generate([5], drawn(1))
        return 1

    assert in_threads(work) == [1]
    assert tiny.all_free(llm) and not llm._delivery._tickets


@pytest.mark.parametrize("method", ["_take", "_wait"])
@pytest.mark.parametrize("before", [False, True])
def test_a_stream_that_another_thread_ends_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, before: bool
) -> None:
    """Between any two looks at its output: no text is lost, and it is not waited for what has come."""
    llm, own = tiny.load(folder), getattr(TextIterator, method)
    expected = tiny.load(folder).generate(PROMPT, drawn(9))[0].text

    def end() -> None:
        while llm.engine.has_unfinished_requests():
            llm._delivery.step()

    def meanwhile(self: TextIterator, *args: Any) -> Any:
        if before:
            end()
        found = own(self, *args)
        end()
        return found

    monkeypatch.setattr(TextIterator, method, meanwhile)
    assert expected and "".join(llm.stream(PROMPT, drawn(9))) == expected
    assert llm.stream(PROMPT, drawn(9)).result.text == expected and tiny.all_free(llm)


def test_short_streams_in_cycles(folder: Path) -> None:
    """The destructor takes no lock, so the collector may run at any time."""
    llm, chance, before = tiny.load(folder), random.Random(0), gc.get_threshold()
    expected = llm.generate([5], drawn(1))[0].text

    class Session:
        pass

    def work() -> set[str]:
        texts = set()
        for _ in range(400):
            session: Any = Session()
            session.keep = [[i] for i in range(chance.randrange(50))]
            session.stream, session.on_done = llm.stream([5], drawn(1)), lambda s=session: s
            texts.add("".join(session.stream))
        return texts

    gc.set_threshold(20, 2, 2)
    try:
        assert in_threads(work, work) == [{expected}] * 2
    finally:
        gc.set_threshold(*before)
    assert tiny.all_free(llm)


def test_a_dropped_stream_ends_and_keeps_nothing_alive(llm: LLM) -> None:
    """It is not part of a cycle: it is freed with its last reference, not by the collector."""
    gc.collect()
    gc.disable()
    try:
        stream = llm.stream(PROMPT, drawn(200))
        next(stream)
        del stream
        llm.engine.step()
        assert tiny.all_free(llm)
    finally:
        gc.enable()
