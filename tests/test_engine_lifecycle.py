"""Contract C6: every request ends - served, refused, cancelled or capped - and its blocks come back."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm import LLM, SamplingParams
from minillm.detokenizer import Detokenizer
from minillm.errors import KVCapacityError, MinillmError, OutOfBlocks, PromptTooLong, QueueFull, UsageError

PROMPT = list(range(20, 37))
LONG = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)


def greedy(tokens: int, **params: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, **({"ignore_eos": True} | params))


def drain(llm: LLM, limit: int = 2000) -> dict[str, Any]:
    """Step until idle; a test that would hang fails instead."""
    finished = {}
    for _ in range(limit):
        if not llm.engine.has_unfinished_requests():
            return finished
        finished |= {o.request_id: o for o in llm.engine.step() if o.finished}
        stats = llm.engine.stats()
        assert stats["free_blocks"] + stats["used_blocks"] == stats["num_blocks"]
    raise AssertionError("the engine does not come to an end")


# ---- how a completion ends ------------------------------------------------------------------------


def test_stop_token_ids_and_eos(tmp_path: Path, llm: LLM) -> None:
    tokens = llm.generate(PROMPT, greedy(12))[0].token_ids
    marker = next(t for i, t in enumerate(tokens) if i > 2 and t not in tokens[:i])
    expected = tokens[: tokens.index(marker) + 1]
    stopped = llm.generate(PROMPT, greedy(12, stop_token_ids=[marker], logprobs=0))[0]
    assert (stopped.token_ids, stopped.finish_reason) == (expected, "stop")
    assert len(stopped.logprobs) == len(expected), "logprobs include the token that stops"
    assert stopped.text == llm.generate(PROMPT, greedy(len(expected) - 1))[0].text, "text excludes it"

    folder = tiny.make_folder(tmp_path, generation={"eos_token_id": [3, marker]})
    with_eos = tiny.load(folder)
    ended = with_eos.generate(PROMPT, greedy(12, ignore_eos=False))[0]
    assert (ended.token_ids, ended.finish_reason, ended.text) == (expected, "stop", stopped.text)
    assert with_eos.generate(PROMPT, greedy(12))[0].token_ids == tokens, "ignore_eos"


def test_stop_strings_in_the_engine(llm: LLM) -> None:
    plain = llm.generate(PROMPT, greedy(30))[0]
    pairs = (plain.text[i : i + 2] for i in range(4, len(plain.text)))
    stop = next(pair for pair in pairs if "\ufffd" not in pair)
    stopped = llm.generate(PROMPT, greedy(30, stop=[stop, "never there"]))[0]
    assert stopped.finish_reason == "stop" and stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.token_ids == plain.token_ids[: len(stopped.token_ids)]
    assert stop in llm.engine.model.tokenizer.decode(stopped.token_ids), "token_ids keep it"


def test_max_tokens_is_capped_by_the_context(llm: LLM) -> None:
    output = llm.generate([5] * 250, greedy(10**9))[0]
    assert (len(output.token_ids), output.finish_reason) == (6, "length")
    assert len(llm.generate([5] * 255, greedy(9))[0].token_ids) == 1
    with pytest.raises(PromptTooLong, match="256"):
        llm.generate([5] * 256, greedy(1))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_max_tokens_is_capped_by_the_pool_and_not_by_neighbours(folder: Path, n: int) -> None:
    llm = tiny.load(folder, kv_memory=tiny.blocks(6), block_size=16)
    alone = llm.generate(PROMPT, greedy(500, n=n))[0]
    # 17 prompt tokens: one full block shared, the other five dealt out evenly
    expected = 16 + 16 * (5 // n) - 17
    assert [len(c.token_ids) for c in alone.outputs] == [expected] * n
    assert alone.finish_reason == "length"
    beside = llm.generate([PROMPT] * 4, greedy(500, n=n))
    assert [len(o.token_ids) for o in beside] == [expected] * 4
    assert tiny.all_free(llm)


def test_what_can_never_fit_is_refused(folder: Path) -> None:
    llm = tiny.load(folder, kv_memory=tiny.blocks(2))
    assert len(llm.generate([5] * 31, greedy(1))[0].token_ids) == 1  # control: this much fits
    for prompt, params in (([5] * 32, greedy(1)), ([5] * 17, greedy(1, n=2))):
        with pytest.raises(KVCapacityError) as caught:
            llm.generate(prompt, params)
        assert caught.value.exit_code == 7
    with pytest.raises(UsageError, match="sequences"):
        llm.generate([5], greedy(1, n=1000))
    assert tiny.all_free(llm)


# ---- memory is full -------------------------------------------------------------------------------


def test_two_that_together_exceed_the_pool(folder: Path) -> None:
    llm = tiny.load(folder, kv_memory=tiny.blocks(8))
    first, second = llm.engine.add_request(PROMPT, LONG), llm.engine.add_request(PROMPT, LONG)
    llm.engine.step()
    assert llm.engine.stats()["waiting"] == 1, "the second waits for blocks"
    outputs = drain(llm)
    assert outputs[first].token_ids == outputs[second].token_ids
    assert outputs[second].metrics.queue > outputs[first].metrics.queue
    assert tiny.all_free(llm)


def test_a_small_one_does_not_starve_a_large_one(folder: Path) -> None:
    llm = tiny.load(folder, kv_memory=tiny.blocks(8))
    order: list[str] = []
    ids = [llm.engine.add_request([5], p) for p in (greedy(60), greedy(120), greedy(2))]
    while llm.engine.has_unfinished_requests():
        order += [o.request_id for o in llm.engine.step() if o.finished]
    assert order.index(ids[0]) < order.index(ids[1])
    assert set(order) == set(ids)


def test_more_prompts_than_the_queue_holds(folder: Path) -> None:
    llm = tiny.load(folder, max_queued_requests=2, max_num_seqs=2)
    outputs = llm.generate([[5 + i] for i in range(11)], greedy(4))
    assert [o.prompt_token_ids for o in outputs] == [[5 + i] for i in range(11)]
    assert tiny.all_free(llm)


def test_queue_full(folder: Path) -> None:
    llm = tiny.load(folder, max_queued_requests=2)
    for _ in range(2):
        llm.engine.add_request(PROMPT, LONG)
    with pytest.raises(QueueFull) as caught:
        llm.engine.add_request(PROMPT, LONG)
    assert caught.value.exit_code == 7 and caught.value.hint
    llm.engine.step()
    llm.engine.add_request(PROMPT, LONG)  # those two run now, so there is room
    few_tokens = tiny.load(folder, max_queued_tokens=20)
    few_tokens.engine.add_request(PROMPT, LONG)
    with pytest.raises(QueueFull, match="tokens"):
        few_tokens.engine.add_request(PROMPT, LONG)
    assert len(drain(llm)) == 3 and len(drain(few_tokens)) == 1


# ---- cancelled ------------------------------------------------------------------------------------


def test_abort_waiting_prefilling_and_decoding(folder: Path) -> None:
    llm = tiny.load(folder, kv_memory=tiny.blocks(8), prefill_chunk=4)
    decoding, prefilling, waiting, kept = (llm.engine.add_request(p, s) for p, s in (
        ([5], greedy(30)), (PROMPT, greedy(10)), (PROMPT, LONG), ([6], greedy(3))))  # fmt: skip
    llm.engine.step()
    assert llm.engine.stats()["waiting"] == 2
    for request_id in (decoding, prefilling, waiting, "req-unknown", decoding):
        llm.engine.abort_request(request_id)
    outputs = drain(llm)
    assert {i: o.finish_reason for i, o in outputs.items()} == {
        decoding: "cancelled", prefilling: "cancelled", waiting: "cancelled", kept: "length"}  # fmt: skip
    assert len(outputs[decoding].token_ids) == 1 and outputs[waiting].token_ids == []
    assert outputs[waiting].metrics.ttft is None
    llm.engine.abort_request(decoding)  # finished long ago: nothing happens
    assert llm.engine.step() == [] and tiny.all_free(llm)


def test_abort_keeps_the_text(llm: LLM) -> None:
    request_id = llm.engine.add_request(PROMPT, LONG)
    for _ in range(10):
        llm.engine.step()
    llm.engine.abort_request(request_id)
    (output,) = llm.engine.step()
    assert output.text == llm.generate(PROMPT, greedy(10))[0].text != ""


def test_abort_of_forks(llm: LLM) -> None:
    request_id = llm.engine.add_request(PROMPT, greedy(50, n=3))
    for _ in range(3):
        llm.engine.step()
    llm.engine.abort_request(request_id)
    (output,) = llm.engine.step()
    assert [c.finish_reason for c in output.outputs] == ["cancelled"] * 3 and tiny.all_free(llm)


@pytest.mark.parametrize("started", [False, True])
def test_deadline(llm: LLM, started: bool) -> None:
    request_id = llm.engine.add_request(PROMPT, greedy(200, deadline=0.05))
    other = llm.engine.add_request([6], greedy(5))
    if started:
        llm.engine.step()
    time.sleep(0.06)
    outputs = drain(llm)
    assert outputs[request_id].finish_reason == "deadline" and outputs[other].finish_reason == "length"
    assert len(outputs[request_id].token_ids) == started
    assert outputs[request_id].metrics.e2e >= 0.05 and tiny.all_free(llm)


# ---- one bad request, and bad parts ---------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_end_one_request_only(tmp_path: Path, value: float) -> None:
    """One row of the embedding is broken: who meets it ends with an error, and nobody else notices."""
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
    assert llm.generate([5, 6], params)[0].token_ids == outputs[0].token_ids, "its blocks are clean again"


@pytest.mark.parametrize("failing", ["sampler", "decode_loop", "prefill_loop", "detokenizer"])
def test_a_part_that_raises_loses_no_blocks(folder: Path, failing: str) -> None:
    """The exception comes through; the engine is whole afterwards."""
    import dataclasses

    llm = tiny.load(folder)
    own, broken = llm.engine.parts, threading.Event()

    class Failing(Detokenizer):
        def push(self, token_id: int) -> str:
            if broken.is_set():
                raise ZeroDivisionError
            return super().push(token_id)

        def finish(self) -> str:
            if broken.is_set():
                raise ZeroDivisionError
            return super().finish()

    def call(*args: Any) -> Any:
        if broken.is_set():
            raise ZeroDivisionError
        return getattr(own, failing)(*args)

    part = Failing if failing == "detokenizer" else call
    llm.engine.parts = dataclasses.replace(own, **{failing: part})
    expected = llm.generate([PROMPT, [5]], greedy(4, n=2))
    stream = llm.stream([6], greedy(50))
    next(stream)
    broken.set()
    with pytest.raises(ZeroDivisionError):
        llm.generate([PROMPT, [5]], greedy(4, n=2))
    broken.clear()
    stream.close()
    assert stream.output is not None and stream.output.finished
    assert tiny.all_free(llm)
    assert [o.token_ids for o in llm.generate([PROMPT, [5]], greedy(4, n=2))] == [
        o.token_ids for o in expected
    ]


def test_ctrl_c_frees_everything(folder: Path) -> None:
    steps = 0

    def interrupted(runner: Any, requests: Any) -> torch.Tensor:
        from minillm.engine.decode import decode

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
    assert drain(llm)[request_id].token_ids == expected, "the running request was not disturbed"
