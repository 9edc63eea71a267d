"""Contract C6: a fault in one request does not disturb the others, and no block is lost.

The faults: broken weights, parts that raise, Ctrl-C, several threads, a full pool.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm import MinillmError, SamplingParams
from minillm.engine.parts import Parts
from minillm.engine.sequence import Sequence
from minillm.errors import OutOfBlocks, PartError
from minillm.text.detokenizer import Detokenizer, NullDetokenizer
from minillm.worker.decode import decode

PROMPT = list(range(20, 37))


def greedy(tokens: int, **params: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, **params)


# ---- one bad request, and bad parts ---------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_end_one_request_only(tmp_path: Path, value: float) -> None:
    """One embedding row is broken: a request that uses it ends with an error; the others are not affected."""
    tensors = tiny.weights(tiny.config())
    good = tiny.load(tiny.make_folder(tmp_path / "good", tensors=tensors))
    tensors["model.embed_tokens.weight"][200, 0] = value
    llm = tiny.load(tiny.make_folder(tmp_path / "bad", tensors=tensors))
    prompts = [[5, 6], [7, 200, 8], PROMPT]
    params = greedy(6, n=2)
    outputs = llm.generate(prompts, params)
    assert [c.finish_reason for c in outputs[1].outputs] == ["error"] * 2
    assert isinstance(outputs[1].error, MinillmError) and "NaN" in str(outputs[1].error)
    for i in (0, 2):
        assert outputs[i].error is None
        assert outputs[i].token_ids == good.generate(prompts[i], params)[0].token_ids
    assert tiny.all_free(llm)
    assert llm.generate([5, 6], params)[0].token_ids == outputs[0].token_ids, "its blocks can be used again"


@pytest.mark.parametrize("failing", ["sampler", "decode_loop", "prefill_loop"])
def test_a_part_that_raises_loses_no_blocks(folder: Path, failing: str) -> None:
    """The caller gets the exception; afterwards the engine works as before."""
    own, broken = Parts(), threading.Event()

    def call(*args: Any) -> Any:
        if broken.is_set():
            raise ZeroDivisionError
        return getattr(own, failing)(*args)

    llm = tiny.load(folder, parts={failing: call})
    expected = llm.generate([PROMPT, [5]], greedy(4, n=2))
    stream = llm.stream([6], greedy(50))
    next(stream)
    broken.set()
    with pytest.raises(ZeroDivisionError):
        llm.generate([PROMPT, [5]], greedy(4, n=2))
    broken.clear()
    with pytest.raises(ZeroDivisionError):
        list(stream)  # it was part of the failed step, so it has ended with the error
    assert stream.output.finish_reason == "error" and isinstance(stream.output.error, ZeroDivisionError)
    assert tiny.all_free(llm)
    assert [o.token_ids for o in llm.generate([PROMPT, [5]], greedy(4, n=2))] == [
        o.token_ids for o in expected
    ]


class Panic(BaseException):
    """What a library written in Rust raises."""


def failing_at(method: str, prompt: list[int], error: type[BaseException]) -> type[Detokenizer]:
    """A detokenizer whose method raises for requests with this prompt."""

    class Failing(Detokenizer):
        def __init__(self, tokenizer: Any, stops: Any, prompt_ids: Any) -> None:
            super().__init__(tokenizer, stops, prompt_ids)
            self.is_failing = list(prompt_ids) == prompt

        def push(self, token_id: int) -> str:
            return self._checked("push", super().push(token_id))

        def finish(self) -> str:
            return self._checked("finish", super().finish())

        def _checked(self, name: str, text: str) -> str:
            if self.is_failing and name == method:
                raise error
            return text

    return Failing


@pytest.mark.parametrize(("error", "told"), [(ZeroDivisionError, ZeroDivisionError), (Panic, PartError)])
@pytest.mark.parametrize("method", ["push", "finish"])
def test_a_detokenizer_that_raises_ends_its_own_request_only(
    folder: Path, method: str, error: type[BaseException], told: type[Exception]
) -> None:
    """Whoever takes the step, for whomever: the error is in one output, and nothing is raised."""
    params, expected = greedy(6, n=2), tiny.load(folder).generate(PROMPT, greedy(6, n=2))[0]
    llm = tiny.load(folder, parts={"detokenizer": failing_at(method, [5, 6], error)})
    bad, good = llm.generate([[5, 6], PROMPT], params)
    assert [c.finish_reason for c in bad.outputs] == ["error"] * 2 and type(bad.error) is told
    assert good.error is None and good.text == expected.text
    theirs = llm.stream([5, 6], greedy(6))
    assert llm.generate(PROMPT, params)[0].text == expected.text, "these steps are also the stream's"
    with pytest.raises(told):
        list(theirs)
    assert tiny.all_free(llm)


def test_a_detokenizer_is_no_place_to_lose_an_interrupt(folder: Path) -> None:
    for interrupt in (KeyboardInterrupt, SystemExit):
        llm = tiny.load(folder, parts={"detokenizer": failing_at("push", [5, 6], interrupt)})
        with pytest.raises(interrupt):
            llm.generate([[5, 6], PROMPT], greedy(6))
        assert tiny.all_free(llm)


class RaisesAtTheEnd(NullDetokenizer):
    """A detokenizer that has no text left to give."""

    def finish(self) -> str:
        raise ZeroDivisionError


def test_broken_logits_and_a_detokenizer_that_raises(tmp_path: Path) -> None:
    """The request ends all the same, with the error that was first; so do its other samples."""
    tensors = tiny.weights(tiny.config())
    tensors["model.embed_tokens.weight"][200, 0] = float("nan")
    parts = {"detokenizer": lambda tokenizer, stop, ids: RaisesAtTheEnd()}
    llm = tiny.load(tiny.make_folder(tmp_path, tensors=tensors), parts=parts)
    (output,) = llm.generate([7, 200, 8], greedy(6, n=2))
    assert [c.finish_reason for c in output.outputs] == ["error"] * 2 and "NaN" in str(output.error)
    assert tiny.all_free(llm)


def test_infinite_logits_end_one_request_only(folder: Path) -> None:
    """float16 overflows to inf, and inf - inf is NaN: a token sampled from NaN would be arbitrary."""

    def overflowing(runner: Any, requests: Any) -> torch.Tensor:
        logits = decode(runner, requests).clone()
        for row, request in enumerate(requests):
            if request.position == 2:  # the first decode step after the prompt [5, 6]
                logits[row, 3] = float("inf")
        return logits

    llm = tiny.load(folder, parts={"decode_loop": overflowing})
    bad, good = llm.generate([[5, 6], PROMPT], greedy(6))
    assert bad.finish_reason == "error" and len(bad.token_ids) == 1
    assert good.token_ids == tiny.load(folder).generate(PROMPT, greedy(6))[0].token_ids
    pieces, stream = [], llm.stream([5, 6], greedy(6))
    with pytest.raises(MinillmError, match="NaN or infinite"):
        pieces += stream
    assert "".join(pieces) == bad.text  # first the text, then the error


def test_ctrl_c_frees_everything(folder: Path) -> None:
    steps = 0

    def interrupted(runner: Any, requests: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return decode(runner, requests)

    llm = tiny.load(folder, parts={"decode_loop": interrupted}, max_queued_requests=2)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT] * 5, greedy(9))
    assert tiny.all_free(llm)
    assert len(llm.generate([PROMPT] * 5, greedy(9))) == 5


def test_who_begins_again_after_an_interrupt_was_preempted(folder: Path) -> None:
    """Those that ran resume; who had not begun is admitted, once; the time in the queue is the first."""
    llm = tiny.load(folder, max_num_seqs=3)
    engine = llm.engine
    expected = [o.token_ids for o in llm.generate([PROMPT, PROMPT[:5]], [greedy(6, n=2), greedy(6)])]
    with engine.events.record() as events:
        ids = [engine.add_request(PROMPT, greedy(6, n=2)), engine.add_request([5, 6], greedy(4))]
        ids.append(engine.add_request(PROMPT[:5], greedy(6)))
        engine.step()
        engine.step()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sequence, "has_unpublished", interrupt)  # after the tokens were appended
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        outputs = dict[str, Any]()
        while engine.has_unfinished_requests():
            outputs |= {output.request_id: output for output in engine.step()}
    admitted = [event.request_id for event in events if event.kind == "admit"]
    resumed = [event.request_id for event in events if event.kind == "resume"]
    assert admitted == ids and sorted(resumed, key=ids.index) == [ids[0], ids[0], ids[1]], "both samples"
    for event in events:
        if event.kind == "admit":
            assert outputs[event.request_id].metrics.queue == pytest.approx(event["waited"])
    assert [outputs[ids[0]].token_ids, outputs[ids[2]].token_ids] == expected
    assert tiny.all_free(llm)


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_add_and_abort_from_many_threads(folder: Path) -> None:
    llm = tiny.load(folder, max_queued_requests=10_000)
    ids: list[str] = []
    errors: list[BaseException] = []

    def submit(worker: int) -> None:
        try:
            for i in range(25):
                ids.append(llm.engine.add_request([5 + worker, 5 + i], greedy(1 + i % 4)))
                llm.engine.stats()
                if i % 5 == 0:
                    llm.engine.abort_request(ids[-1])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=submit, args=(w,)) for w in range(8)]
    for thread in threads:
        thread.start()
    finished: dict[str, Any] = {}
    while any(t.is_alive() for t in threads) or llm.engine.has_unfinished_requests():
        finished |= {o.request_id: o for o in llm.engine.step() if o.finished}
    assert not errors and len(set(ids)) == 200 and set(finished) == set(ids)
    assert {o.finish_reason for o in finished.values()} <= {"length", "cancelled"}
    assert tiny.all_free(llm)


def test_the_live_requests_are_walked_under_the_lock(llm: Any) -> None:
    """Other threads add requests to the dict, so a loop over it without the lock sometimes fails."""
    lock = llm.engine._registry.lock

    class Watched(dict):
        def items(self) -> Any:
            assert lock.locked()
            return super().items()

        def values(self) -> Any:
            assert lock.locked()
            return super().values()

        def __iter__(self) -> Any:
            assert lock.locked()
            return super().__iter__()

    llm.engine._registry.live = Watched()
    assert len(llm.generate([PROMPT, [5]], greedy(3))) == 2
    llm.engine.stats()


def test_logits_on_a_full_pool(folder: Path) -> None:
    llm = tiny.load(folder, kv_memory=tiny.blocks(4))
    request_id = llm.engine.add_request(PROMPT, greedy(30))
    llm.engine.step()
    before = llm.engine.stats()
    with pytest.raises(OutOfBlocks):
        llm.logits([5] * 40)
    assert llm.engine.stats() == before
    assert llm.logits([5] * 16).shape == (16, tiny.VOCAB_SIZE) and llm.engine.stats() == before
    expected = tiny.load(folder).generate(PROMPT, greedy(30))[0].token_ids
    finished = {}
    while llm.engine.has_unfinished_requests():
        finished |= {o.request_id: o for o in llm.engine.step() if o.finished}
    assert finished[request_id].token_ids == expected, "the running request was not disturbed"
