"""Events and metrics (contract C8): the trace gives exact metrics and contains nothing private."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
from scenarios import metric_faults

from minillm import LLM, SamplingParams
from minillm.engine.block_map import BlockMap
from minillm.engine.keyed import keyed
from minillm.engine.outputs import RequestOutput
from minillm.errors import MinillmError
from minillm.observe import events as events_module
from minillm.observe.events import Event
from minillm.observe.metrics import percentile, summarize
from minillm.speculation.scripted import RandomDrafter
from minillm.text.detokenizer import Detokenizer

PROMPTS = [[(7 * i + j) % 250 for j in range(length)] for i, length in enumerate((3, 40, 17, 90, 33, 64))]
PARAMS = SamplingParams(max_tokens=20, seed=1, ignore_eos=True)


@pytest.fixture
def tight(tmp_path: Path) -> LLM:
    llm = tiny.load(tiny.make_folder(tmp_path), kv_memory=tiny.blocks(9), prefill_chunk=16)
    llm.engine.scheduler.headroom_tokens = 0
    return llm


def test_metrics_are_those_of_the_outputs(tight: LLM) -> None:
    with tight.engine.events.record() as trace:
        outputs = tight.generate([*PROMPTS, *PROMPTS[::-1]], [PARAMS] * 12)
    summary = summarize(trace)
    assert summary.preemptions > 0 and summary.cached_tokens > 0
    assert metric_faults(outputs, trace) == []
    assert summary.output_tokens == sum(len(o.token_ids) for o in outputs) == 240
    assert summary.prompt_tokens == 2 * sum(map(len, PROMPTS))


@pytest.mark.parametrize("kind", ["sample", "preempt", "queue"])
def test_control_a_trace_that_lost_an_event_gives_other_figures(tight: LLM, kind: str) -> None:
    with tight.engine.events.record() as trace:
        tight.generate(PROMPTS, PARAMS)
    lost = next(event for event in trace if event.kind == kind)
    cut = [event for event in trace if event is not lost]
    figures = [(s.output_tokens, s.preemptions, s.prompt_tokens) for s in map(summarize, (trace, cut))]
    assert figures[0] != figures[1]


class Breaks(Detokenizer):
    """Raises at the fourth token after the prompt [7]."""

    def __init__(self, tokenizer: Any, stops: Any, prompt: list[int]) -> None:
        super().__init__(tokenizer, stops, prompt)
        self._left = 4 if list(prompt) == [7] else -1

    def push(self, token_id: int) -> str:
        self._left -= 1
        if self._left == 0:
            raise ValueError
        return super().push(token_id)


def test_every_metric_of_every_output_follows_from_the_trace(tmp_path: Path) -> None:
    """After every step, for requests that finish, wait, fork, are preempted, aborted, overdue or fail.

    The control: a trace that has lost one event gives other numbers.
    """
    llm = tiny.load(
        tiny.make_folder(tmp_path),
        kv_memory=tiny.blocks(12),
        prefill_chunk=16,
        max_num_seqs=6,
        draft_model="ngram",
        adaptive_draft=False,
        parts={"detokenizer": Breaks},
    )
    engine, outputs = llm.engine, dict[str, RequestOutput]()
    engine.scheduler.headroom_tokens = 0
    greedy = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    forks = SamplingParams(max_tokens=9, seed=2, ignore_eos=True, n=3)
    overdue = SamplingParams(max_tokens=9, deadline=1e-9)
    with engine.events.record() as trace:
        ids = [engine.add_request(prompt, PARAMS) for prompt in ([7], *PROMPTS)]
        ids += [engine.add_request([5, 6] * 9, greedy), engine.add_request([3, 4] * 5, forks)]
        ids += [engine.add_request([8], overdue), engine.add_request([9] * 20, PARAMS)]
        engine.abort_request(ids[-1])  # it is never admitted
        for step in range(300):
            if step == 12:
                engine.abort_request(ids[1])  # it is running
            with suppress(ValueError):
                found = {output.request_id: output for output in engine.step()}
                outputs |= found
                assert metric_faults(found.values(), trace) == []
    reasons = [outputs[i].finish_reason for i in ids]
    assert set(reasons) == {"error", "cancelled", "length", "deadline"} and reasons[1] == "cancelled"
    kinds = {event.kind for event in trace}
    assert {"preempt", "copy_on_write", "speculate"} <= kinds and outputs[ids[7]].metrics.drafted > 0
    never = outputs[ids[-1]].metrics
    assert never.queue == never.e2e > 0 and never.ttft is None
    for kind in ("admit", "sample", "speculate", "finish"):
        lost = next(event for event in trace if event.kind == kind)
        assert metric_faults(outputs.values(), [event for event in trace if event is not lost]), kind


def test_a_request_that_arrives_in_a_step_does_not_start_before_it_was_submitted(folder: Path) -> None:
    """The step's clock is read after the new requests were taken."""
    llm = tiny.load(folder)
    take = llm.engine._take_incoming
    ids = list[str]()

    def arriving() -> set[str]:
        ids.append(llm.engine.add_request([5], PARAMS))  # as if from another thread
        return take()

    llm.engine._take_incoming = arriving  # type: ignore[method-assign]
    (output,) = llm.engine.step()
    assert output.request_id == ids[0] and 0 < output.metrics.queue < output.metrics.ttft


def test_drafts_are_counted_as_in_the_outputs(tmp_path: Path) -> None:
    """Drafted and accepted tokens, in all and by position, and times are computed from the trace only."""
    llm = tiny.load(tiny.make_folder(tmp_path), draft_model="ngram", adaptive_draft=False, num_draft_tokens=3)
    prompts = [[5, 6, 7, 8, 9] * 4, [3, 4] * 8, [1, 2, 3]]
    with llm.engine.events.record() as trace:
        outputs = llm.generate(prompts, SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, n=2))
    found = summarize(trace).speculation
    assert found.drafted == sum(o.metrics.drafted for o in outputs) > 0
    assert found.accepted == sum(o.metrics.accepted for o in outputs) == sum(found.accepted_at.values())
    assert found.drafted == sum(found.drafted_at.values()) and max(found.drafted_at) == 3
    assert all(found.accepted_at[i] <= found.accepted_at[i - 1] for i in (2, 3))
    steps = [event for event in trace if event.kind == "speculate"]
    sampled = [event for event in trace if event.kind == "sample" and event.step in {e.step for e in steps}]
    assert found.tokens_per_step == sum(len(e["requests"]) for e in sampled) / found.verifications
    times = found.draft_seconds, found.verify_seconds, found.bookkeeping_seconds
    assert all(seconds > 0 for seconds in times) and sum(times) == pytest.approx(found.seconds)
    assert summarize(trace).output_tokens == 3 * 2 * 20


def test_blocks_can_be_followed(tight: LLM) -> None:
    """used + cached + free = pool after every step, and every allocated block is freed in the end."""
    with tight.engine.events.record() as trace:
        tight.generate(PROMPTS, SamplingParams(max_tokens=12, seed=2, ignore_eos=True, n=2))
    for event in trace:
        if event.kind == "step":
            assert event["used"] + event["cached"] + event["free"] == 9
            assert 0 <= event["waste"] < 16 * max(event["running"], 1)
    taken = Counter[str]()
    for event in trace:
        if event.kind in ("alloc", "share"):
            taken[event.request_id] += event["blocks"]
        elif event.kind == "free":
            taken[event.request_id] -= event["blocks"]
    assert taken and all(count == 0 for count in taken.values())


def test_waste_is_exact(tmp_path: Path) -> None:
    llm = tiny.load(tiny.make_folder(tmp_path))
    with llm.engine.events.record() as trace:
        llm.generate([1] * 5, SamplingParams(max_tokens=20, ignore_eos=True))
    waste = [event["waste"] for event in trace if event.kind == "step"]
    # 5 tokens in a block of 16 waste 11 slots; each step wastes one less until the next block is allocated.
    assert waste == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 0]


def test_refusals_and_cancellations_are_events(tight: LLM) -> None:
    with tight.engine.events.record() as trace:
        with pytest.raises(MinillmError):
            tight.engine.add_request([1] * 1000, PARAMS)
        tight.engine.abort_request(tight.engine.add_request([1, 2], PARAMS))
        tight.engine.step()
    kinds = {event.kind: event for event in trace}
    assert kinds["refuse"]["reason"] == "PromptTooLong" and kinds["cancel"]["reason"] == "cancelled"
    assert kinds["finish"]["reason"] == "cancelled"


def test_the_documented_events_are_the_ones_there_are(tight: LLM, tmp_path: Path) -> None:
    tight.engine.events.detail = BlockMap(tight.engine.memory, tight.engine.events)
    parts = {"drafter": lambda model, config: RandomDrafter(model.config.vocab_size)}
    drafting = tiny.load(tiny.make_folder(tmp_path), parts=parts, adaptive_draft=False)
    with drafting.engine.events.record() as drafted:
        drafting.generate([5, 6, 7, 5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True))
    with tight.engine.events.record() as trace:
        tight.generate(PROMPTS[0], PARAMS, tenant="a")
        tight.generate([*PROMPTS, *PROMPTS], SamplingParams(max_tokens=14, n=2, ignore_eos=True))
        test_refusals_and_cancellations_are_events(tight)
        tight.warmup()
    listed = {
        name
        for line in re.findall(r"^    ([a-z][a-z_, ]*?)  ", events_module.__doc__ or "", re.MULTILINE)
        for name in line.split(", ")
    }
    assert {event.kind for event in (*trace, *drafted)} == listed


REASONS = ("length", "stop", "cancelled", "deadline", "error", "room", "guarantee", "reset", "begin", "end")
NAMES = {"schedule", "reserve", "run", "commit", "blocks", "seqs", "tokens", "quota"}


def private(trace: list[Event], known: Collection[str] = ()) -> list[Event]:
    """Events with a value that is no number, no list, none of the reasons and no keyed digest.

    `known`: digests that anybody can compute; those count as private.
    """

    def is_harmless(name: str, value: Any) -> bool:
        if name in ("prompt", "answer"):
            return bool(re.fullmatch("[0-9a-f]{64}", value)) and value not in known
        if name == "tenant":
            return bool(re.fullmatch("[0-9a-f]{16}", value)) and value not in known
        if isinstance(value, dict):
            return set(value) <= NAMES and all(isinstance(number, int | float) for number in value.values())
        return isinstance(value, int | float | list) or value in REASONS

    return [event for event in trace if not all(is_harmless(*item) for item in event.data.items())]


def test_nothing_private_is_in_a_trace(tight: LLM) -> None:
    """Only numbers, ids of requests and blocks, and keyed digests: no token, no text, no tenant."""
    tight.engine.events.detail = BlockMap(tight.engine.memory, tight.engine.events)
    with tight.engine.events.record() as trace:
        output = tight.generate("a secret word", PARAMS, tenant="a secret tenant")[0]
        tight.warmup()
    assert "secret" not in repr(trace)
    assert private(trace, anybody_s(output)) == [] and any(event.kind == "blocks" for event in trace)


def anybody_s(output: RequestOutput) -> set[str]:
    """The digests that everybody can compute who guesses the prompt or the answer."""
    given = {output.prompt_digest, output.prompt_token_digest, output.token_digest}
    return given | {hashlib.sha256(b"a secret word").hexdigest()}


def test_digests_in_a_trace_tell_no_tenant_about_another(tight: LLM) -> None:
    """Equal prompts of one tenant look equal. Those of two tenants do not: nobody can try guesses."""
    prompts: dict[str | None, list[str]] = {"ann": [], "bob": [], None: [], "": []}
    for tenant, found in prompts.items():
        for _ in range(2):
            with tight.engine.events.record() as trace:
                tight.generate("a secret word", PARAMS, tenant=tenant)
            found += [e["prompt"] for e in trace if e.kind == "queue"]
            found += [e["answer"] for e in trace if e.kind == "finish"]
    assert all(first[:2] == first[2:] for first in prompts.values())
    assert len({digest for found in prompts.values() for digest in found}) == 8


def test_another_process_keys_with_another_secret() -> None:
    program = "from minillm.engine.keyed import keyed; print(keyed('0' * 64, None))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert re.fullmatch("[0-9a-f]{64}", found.stdout.strip())
    assert found.stdout.strip() != keyed("0" * 64, None) == keyed("0" * 64, None)


def test_control_what_is_private_is_noticed(tight: LLM) -> None:
    with tight.engine.events.record() as trace:
        tight.engine.events.emit("queue", "id", prompt="a secret word")
        tight.engine.events.deliver()
    assert "secret" in repr(trace) and len(private(trace)) == 1


def test_control_a_digest_without_key_is_noticed(tight: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("registry", "report"):
        monkeypatch.setattr(f"minillm.engine.{module}.keyed", lambda digest, tenant: digest)
    with tight.engine.events.record() as trace:
        output = tight.generate("a secret word", PARAMS)[0]
    assert {event.kind for event in private(trace, anybody_s(output))} == {"queue", "finish"}


def test_a_listener_stops_listening(tight: LLM) -> None:
    with tight.engine.events.record() as outer:
        with tight.engine.events.record() as inner:
            tight.generate([1], PARAMS)
        count = len(inner)
        tight.generate([1], PARAMS)
    assert count > 0 and len(inner) == count < len(outer) and tight.engine.events.listeners == []


def test_percentile() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, p) for p in (0.5, 0.99, 1.0, 0.0)] == [50, 99, 100, 1]
    assert percentile([3.0], 0.99) == 3.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
