"""Scenarios that run every phase of the engine and can be interrupted at any point, and checks afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tiny
from company import WIDE

from minillm import MinillmError, SamplingParams
from minillm.config import engine_config
from minillm.engine.engine import Engine
from minillm.engine.outputs import RequestMetrics, RequestOutput
from minillm.engine.scheduler import Scheduler
from minillm.model.loader import LoadedModel
from minillm.observe.events import Event
from minillm.observe.metrics import summarize
from minillm.speculation.proposal import DraftSequence
from minillm.speculation.scripted import ScriptedDrafter

CONFIG = tiny.config(**WIDE, max_position_embeddings=256)
TOKEN_BYTES = 2 * 2 * 2 * 32 * 4
MAX_STEPS = 120
BLOCK = 8
LONG = [(7 * i) % 290 + 5 for i in range(37)]


def greedy(tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, logprobs=2, **more)


def drawn(tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.9, seed=3, ignore_eos=True, logprobs=1, **more)


class NoHeadroom(Scheduler):
    """Admits requests without headroom, so that it must preempt later."""

    headroom_tokens = 0


@dataclass(frozen=True)
class Scenario:
    """A run of the engine.

    `requests`: (step, prompt, parameters); a request is added before that step. `aborts`: step -> number of
    the request to abort before it. `disturbed`: the steps to interrupt.
    """

    requests: Sequence[tuple[int, list[int], SamplingParams]]
    disturbed: Sequence[int]
    aborts: Mapping[int, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    num_blocks: int = 40
    scripted: bool = False


SPECULATIVE: dict[str, Any] = {"adaptive_draft": False}
SCENARIOS = {
    "prefill": Scenario(
        [(0, LONG, greedy(3)), (0, [5, 6, 7], drawn(4)), (1, LONG[:17] + [9], drawn(3))],
        disturbed=[0, 1, 2],
        options={"prefill_chunk": 16, "max_num_batched_tokens": 24},
    ),
    "decode": Scenario(
        [
            (0, LONG[:15], greedy(5)),
            (0, [5], drawn(5, repetition_penalty=1.2, top_k=30)),
            (0, [5, 6], drawn(6, stop=["zzzz"])),
        ],
        disturbed=[1, 3, 5],
    ),
    "prefix": Scenario(
        [(0, LONG, greedy(2)), (3, LONG, drawn(3)), (3, LONG[:20], greedy(2))], disturbed=[3, 4]
    ),
    "chain": Scenario(
        [(0, LONG[:12], greedy(9)), (0, [5, 6], drawn(7, top_k=9)), (0, [5], drawn(4))],
        disturbed=[1, 2],
        options={"num_draft_tokens": 3, **SPECULATIVE},
        scripted=True,
    ),
    "tree": Scenario(
        [(0, LONG[:14], greedy(9)), (0, [5], drawn(8, n=2))],
        disturbed=[1, 2],
        options={"draft_tree": (2, 1, 1), **SPECULATIVE},
        scripted=True,
    ),
    "preempt": Scenario(
        [(0, LONG[:7], greedy(22)), (0, LONG[:8], drawn(20)), (0, LONG[:15], greedy(12)), (0, [5], drawn(9))],
        disturbed=[2, 3, 11],
        parts={"scheduler": NoHeadroom},
        num_blocks=6,
    ),
    "fork": Scenario(
        [(0, LONG[:19], drawn(4, n=3)), (0, LONG[:16], drawn(3, n=2)), (1, [5], greedy(2))],
        disturbed=[0, 1],
        options={"prefill_chunk": 16, "max_num_batched_tokens": 40},
    ),
    "abort": Scenario(
        [
            (0, LONG, greedy(9)),
            (0, [5], drawn(9, n=2)),
            (0, [8], greedy(5)),
            (1, [6, 7], greedy(8, deadline=1e-9)),
        ],
        disturbed=[1, 2],
        aborts={2: 0},
    ),
    "finish": Scenario(
        [(0, LONG[:9], greedy(1)), (0, [5], drawn(2, n=2)), (0, [6], greedy(4))], disturbed=[0, 1]
    ),
}


@dataclass
class Run:
    """The result of a scenario: final outputs by request id, how often each came, and the engine."""

    engine: Engine
    trace: list[Event]
    ids: list[str] = field(default_factory=list)
    outputs: dict[str, RequestOutput] = field(default_factory=dict)
    finals: Counter[str] = field(default_factory=Counter)
    raised: list[BaseException] = field(default_factory=list)
    preemptions: int = 0


class Stage:
    """A loaded model, with a new engine for each run."""

    def __init__(self, folder: Path) -> None:
        self.folder = tiny.make_folder(folder, CONFIG, tensors=tiny.weights(CONFIG, scale=0.1))
        self.model: LoadedModel = tiny.load(folder, backend="native").engine.model
        self._expected: dict[str, Run] = {}

    def engine(self, name: str, parts: Mapping[str, Any] = {}, scenario: Scenario | None = None) -> Engine:
        """A new engine for the scenario, with some parts replaced."""
        scenario = scenario or SCENARIOS[name]
        known = dict(scenario.parts)
        if scenario.scripted:
            known["drafter"] = self._scripted(name)
        options = dict(scenario.options)
        kv_memory = scenario.num_blocks * BLOCK * TOKEN_BYTES
        config = engine_config({"kv_memory": kv_memory, "block_size": BLOCK, "dtype": "float32", **options})
        return Engine(self.model, config, known | dict(parts))

    def _scripted(self, name: str) -> Callable[..., ScriptedDrafter]:
        """A drafter that mostly knows the answers of the scenario's prompts and drafts nothing for others."""
        answers = {
            (tuple(output.prompt_token_ids), i): completion.token_ids
            for output in self.expected(name).outputs.values()
            for i, completion in enumerate(output.outputs)
        }

        def answer(sequence: DraftSequence) -> list[int]:
            return answers.get((tuple(sequence.prompt_token_ids), sequence.index), [])

        return lambda model, config: ScriptedDrafter(answer, tiny.VOCAB_SIZE, acceptance=0.7)

    def expected(self, name: str) -> Run:
        """The outputs of an undisturbed run without speculation."""
        if name not in self._expected:
            scenario = SCENARIOS[name]
            options = {k: v for k, v in scenario.options.items() if "draft" not in k}
            plain = replace(scenario, options=options, scripted=False)
            self._expected[name] = self.run(name, scenario=plain)
        return self._expected[name]

    def run(
        self,
        name: str,
        step: int | None = None,
        around: Callable[[Engine], Any] | None = None,
        scenario: Scenario | None = None,
        engine: Engine | None = None,
    ) -> Run:
        """Run the scenario to its end. `around` runs step number `step` and may interrupt it."""
        scenario = scenario or SCENARIOS[name]
        engine = engine or self.engine(name, scenario=scenario)
        run = Run(engine, [])
        engine.events.listeners.append(run.trace.append)
        for number in range(MAX_STEPS):
            for at, prompt, params in scenario.requests:
                if at == number:
                    run.ids.append(_submitted(run, prompt, params))
            if number in scenario.aborts:
                engine.abort_request(run.ids[scenario.aborts[number]])
            if number > 3 and not engine.has_unfinished_requests():
                break
            try:
                outputs = around(engine) if number == step and around else engine.step()
            except (KeyboardInterrupt, Exception) as error:
                run.raised.append(error)
                continue
            for output in outputs:
                run.outputs[output.request_id] = output
                run.finals[output.request_id] += output.finished
        return run

    def faults(
        self,
        name: str,
        run: Run,
        check_trace: bool = True,
        check_metrics: bool = True,
        error: type[Exception] = MinillmError,
    ) -> list[str]:
        """Descriptions of what is wrong with a disturbed run; empty if all is right."""
        expected = self.expected(name)
        found = [f"{i} came {run.finals[i]} times" for i in run.ids if i and run.finals[i] != 1]
        for mine, theirs in zip(run.ids, expected.ids, strict=True):
            if mine in run.outputs:
                found += _differences(run.outputs[mine], expected.outputs[theirs], error)
        found += pool_faults(run.engine)
        if check_trace:
            found += trace_faults(run.trace)
        if check_trace and check_metrics:
            found += metric_faults(run.outputs.values(), run.trace)
        fresh = run.engine.add_request(LONG[:10], greedy(3))
        answer = finish(run.engine).get(fresh)
        if answer is None or (answer.token_ids, answer.logprobs) != self.fresh():
            found.append(f"a new request gets {answer and (answer.token_ids, answer.error)}")
        return found + pool_faults(run.engine)

    def fresh(self) -> tuple[list[int], Any]:
        """The answer to the request that is sent after each run."""
        if not hasattr(self, "_fresh"):
            engine = self.engine("decode")
            fresh = engine.add_request(LONG[:10], greedy(3))
            answer = finish(engine)[fresh]
            self._fresh = answer.token_ids, answer.logprobs
        return self._fresh


def _submitted(run: Run, prompt: list[int], params: SamplingParams) -> str:
    """Submit a request; return its id, or an empty string if a part raised."""
    try:
        return run.engine.add_request(prompt, params)
    except (KeyboardInterrupt, Exception) as error:
        run.raised.append(error)
        return ""


def finish(engine: Engine) -> dict[str, RequestOutput]:
    """Step until no request is left, with a limit on the steps."""
    found: dict[str, RequestOutput] = {}
    for _ in range(MAX_STEPS):
        if not engine.has_unfinished_requests():
            break
        found |= {o.request_id: o for o in engine.step()}
    return found


def _differences(mine: RequestOutput, theirs: RequestOutput, error: type[Exception]) -> list[str]:
    found = []
    for a, b in zip(mine.outputs, theirs.outputs, strict=True):
        count = len(a.token_ids)
        same = (a.token_ids, a.logprobs) == (b.token_ids[:count], (b.logprobs or [])[:count])
        if not same:
            found.append(f"{mine.request_id} has different tokens or log-probabilities")
        elif a.finish_reason == "error":
            if not isinstance(mine.error, error):
                found.append(f"{mine.request_id} ended with {mine.error!r}")
        elif a.finish_reason != b.finish_reason:
            found.append(f"{mine.request_id} ended with {a.finish_reason}, not {b.finish_reason}")
        elif a.finish_reason in ("stop", "length") and (a.text, count) != (b.text, len(b.token_ids)):
            found.append(f"{mine.request_id} has a different text: {a.text!r}, not {b.text!r}")
    return found


def pool_faults(engine: Engine) -> list[str]:
    """Blocks that are lost or have owners that do not exist."""
    stats, pool, cache = engine.stats(), engine.pool, engine.memory.cache
    cached = cache.num_blocks if cache else 0
    counts = Counter(pool.ref_count(i) for i in range(pool.num_blocks))
    found = []
    if stats["waiting"] or stats["running"] or engine.has_unfinished_requests():
        found.append(f"not empty: {stats}")
    if stats["used_blocks"] or stats["free_blocks"] != stats["num_blocks"]:
        found.append(f"blocks are lost: {stats}")
    if counts != Counter({0: pool.num_blocks - cached, 1: cached}) - Counter():
        found.append(f"owners: {dict(counts)}, cached {cached}")
    if engine.scheduler.running or len(engine.scheduler.waiting):
        found.append("a sequence is left in the scheduler")
    return found


def trace_faults(trace: Sequence[Event]) -> list[str]:
    """Requests whose events do not show that all allocated blocks were freed."""
    held: Counter[str] = Counter()
    for event in trace:
        if event.kind in ("alloc", "share"):
            held[event.request_id] += event["blocks"]
        elif event.kind == "free":
            held[event.request_id] -= event["blocks"]
    return [f"the trace says that {i} holds {n} blocks" for i, n in held.items() if n]


def metric_faults(outputs: Iterable[RequestOutput], trace: Sequence[Event]) -> list[str]:
    """Metrics of outputs that are not, to the last bit, those that follow from the trace alone."""
    requests, found = summarize(trace).requests, list[str]()
    for output in outputs:
        names = {f.name for f in fields(RequestMetrics)} - (set() if output.finished else {"itl"})
        for name in sorted(names):
            mine, theirs = getattr(output.metrics, name), getattr(requests[output.request_id], name)
            if mine != theirs:
                found.append(f"{output.request_id} has {name} {mine}, and {theirs} in the trace")
    return found
