"""Contract C6: every request ends - served, refused, cancelled or capped - and its blocks come back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm import LLM, SamplingParams
from minillm.errors import KVCapacityError, PromptTooLong, QueueFull, UsageError
from minillm.ops.sampling import SamplingBatch

PROMPT = list(range(20, 37))
LONG = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)


def greedy(tokens: int, **params: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, **({"ignore_eos": True} | params))


def drain(llm: LLM, limit: int = 2000) -> dict[str, Any]:
    """Step until the engine is idle; after `limit` steps the test fails."""
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
    assert len(stopped.logprobs) == len(expected), "logprobs include the stop token"
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
    assert stop in llm.engine.model.tokenizer.decode(stopped.token_ids), "token_ids include it"


def test_a_stop_string_found_in_the_last_flush_is_a_stop(folder: Path) -> None:
    """U+FFFD is held back until the last token. Then it counts as a stop string, not as max_tokens."""
    script = tiny.byte_level_tokenizer().encode("ab\ufffd").ids

    def scripted(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        return torch.tensor([script[steps.pop()]])

    for stop, expected in ((["b\ufffd"], ("a", "stop")), ([], ("ab\ufffd", "length"))):
        steps = list(range(len(script)))[::-1]
        llm = tiny.load(folder, parts={"sampler": scripted})
        output = llm.generate([5], greedy(len(script), stop=stop))[0]
        assert (output.text, output.finish_reason) == expected


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
    # 17 prompt tokens: one full block is shared, the other five blocks are divided evenly
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
    with llm.engine.events.record() as events:
        first, second = llm.engine.add_request(PROMPT, LONG), llm.engine.add_request(PROMPT, LONG)
        outputs = drain(llm)
    assert {event.request_id for event in events if event.kind == "preempt"} == {second}
    assert outputs[first].token_ids == outputs[second].token_ids
    assert outputs[second].metrics.e2e > outputs[first].metrics.e2e
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
    llm.engine.add_request(PROMPT, LONG)  # the two waiting requests run now, so the queue has room
    few_tokens = tiny.load(folder, max_queued_tokens=20)
    few_tokens.engine.add_request(PROMPT, LONG)
    with pytest.raises(QueueFull, match="tokens"):
        few_tokens.engine.add_request(PROMPT, LONG)
    assert len(drain(llm)) == 3 and len(drain(few_tokens)) == 1


# ---- cancelled ------------------------------------------------------------------------------------


def test_abort_waiting_prefilling_and_decoding(folder: Path) -> None:
    llm = tiny.load(folder, kv_memory=tiny.blocks(8), prefill_chunk=4, max_num_seqs=2)
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
    llm.engine.abort_request(decoding)  # it has finished: nothing happens
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
