"""Contract C6 with faulty parts and listeners: only the affected requests end with an error.

A part raises at one of its calls, before or after its work, once or from then on always. Or it returns a
wrong value. Then every request must have ended, the unaffected ones must have the right bits, every block
must be free, and the engine must serve new requests. A listener cannot affect a step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fuses import Broken, Fuse, Panic, Stopped
from scenarios import LONG, SCENARIOS, Stage, finish, greedy, pool_faults

from minillm import LLM, MinillmError
from minillm.engine.parts import Parts
from minillm.engine.scheduler import Scheduler
from minillm.engine.step_plan import StepPlan
from minillm.errors import EngineBusy, PartError, StepInterrupted
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import PrefixCache
from minillm.ops.reference import ReferenceOps, apply_rope
from minillm.speculation.proposal import Proposal
from minillm.speculation.scripted import RandomDrafter
from minillm.text.detokenizer import Detokenizer

ERRORS = {"exception": Broken, "interrupt": StepInterrupted, "panic": PartError}  # the error of a request
# The exception that the engine raises.
RAISED = {"exception": Broken, "interrupt": Stopped, "panic": PartError}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage") / "model")


class Drafter(RandomDrafter):
    def propose(self, lookaheads: Any) -> Any:
        return super().propose(lookaheads)

    def settle(self, *args: Any) -> None:
        super().settle(*args)


SPECULATIVE = ["chain", "tree"]
PLAIN = ["prefill", "preempt", "abort"]
OPS = ReferenceOps()
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(Parts(), name) for name in ("sampler", "slot_mapping", "prefill_loop", "decode_loop")},
    "rope": apply_rope,
}
METHODS: dict[str, tuple[type, list[str]]] = {
    "detokenizer": (Detokenizer, ["__init__", "push", "finish", "stopped"]),
    "block_pool": (BlockPool, ["allocate", "share", "free", "num_free", "ref_count"]),
    "scheduler": (Scheduler, ["schedule", "add", "fork", "remove", "requeue"]),
    "prefix_cache": (
        PrefixCache,
        ["digest", "match", "acquire", "publish", "evict", "released", "is_unused", "num_unused"],
    ),
    "drafter": (Drafter, ["propose", "settle"]),
}
CASES = [(name, "") for name in FUNCTIONS] + [(name, m) for name, (_, ms) in METHODS.items() for m in ms]


def fused_part(fuse: Fuse, part: str, method: str) -> Any:
    if part in FUNCTIONS:
        return fuse.around(FUNCTIONS[part])
    cls = fuse.methods(METHODS[part][0], method)
    if part == "drafter":
        return lambda model, config: cls(tiny.VOCAB_SIZE)
    if part == "scheduler":
        cls.headroom_tokens = 0  # type: ignore[attr-defined]
    return lambda *args: cls(*args)


def faults_after(stage: Stage, name: str, part: str, method: str, fuse: Fuse) -> list[str]:
    """Run the scenario with the part and return what is wrong afterwards; then the fuse no longer raises."""
    try:
        engine = stage.engine(name, {part: fused_part(fuse, part, method)})
    except (Broken, Stopped, Panic):
        return []  # it raised while the engine was built, so there is no engine
    run = stage.run(name, engine=engine)
    fuse.at = None
    if fuse.for_ever:
        engine.step()  # the earlier recovery failed
    kind = kind_of(fuse.error)
    found = stage.faults(name, run, check_trace=not fuse.for_ever, error=ERRORS[kind])
    for error in run.raised:
        if type(error) is not RAISED[kind]:
            found.append(f"raised {error!r}")
    reported = run.raised or any(type(o.error) is ERRORS[kind] for o in run.outputs.values())
    if fuse.blown and not reported:
        found.append("the exception did not reach the caller")
    for output in run.outputs.values():
        if isinstance(output.error, Broken) and (
            output.error is fuse.error or output.error.__traceback__ or output.error.extra != "kept"
        ):
            found.append("the error is shared")
    at = f"{part}.{method} in {name}, call {fuse.calls}, behind={fuse.behind}, {fuse.error!r}"
    return [f"{at}: {fault}" for fault in found]


def make_error(kind: str) -> BaseException:
    return {"interrupt": Stopped(), "panic": Panic()}.get(kind, Broken(5, extra="kept"))


def kind_of(error: BaseException) -> str:
    return "interrupt" if isinstance(error, Stopped) else "panic" if isinstance(error, Panic) else "exception"


def count_calls(stage: Stage, name: str, part: str, method: str) -> int:
    fuse = Fuse(None, Stopped())
    stage.run(name, engine=stage.engine(name, {part: fused_part(fuse, part, method)}))
    return fuse.calls


def sweep(stage: Stage, part: str, method: str, kind: str, most: int) -> list[str]:
    found = []
    names = SPECULATIVE if part == "drafter" else PLAIN
    if most > 9 or part == "block_pool":  # branches of trees have blocks of their own
        names = sorted({*names, "tree"})
    for name in names:
        calls = count_calls(stage, name, part, method)
        for at in sorted({*range(min(calls, most // 2)), *range(0, calls, max(1, 2 * calls // most))}):
            for behind in (False, True):
                fuse = Fuse(at, make_error(kind), behind)
                found += faults_after(stage, name, part, method, fuse)
    return found


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("part", "method"), CASES)
def test_a_part_raises_once(stage: Stage, part: str, method: str, kind: str) -> None:
    assert sweep(stage, part, method, kind, most=4) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("part", "method"), CASES)
def test_a_part_raises_once_at_many_calls(stage: Stage, part: str, method: str, kind: str) -> None:
    assert sweep(stage, part, method, kind, most=80) == []


@pytest.mark.parametrize(("part", "method"), CASES)
def test_a_part_raises_for_ever(stage: Stage, part: str, method: str) -> None:
    """Every request still ends, and when the part works again, so does the engine."""
    found = []
    for name in SPECULATIVE if part == "drafter" else PLAIN:
        for at in (0, 3, 11):
            for kind in ("exception", "panic"):
                fuse = Fuse(at, make_error(kind), for_ever=True)
                found += faults_after(stage, name, part, method, fuse)
    assert found == []


def test_a_recovery_that_does_nothing_is_noticed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without recovery these parts do harm."""
    monkeypatch.setattr("minillm.engine.engine.Engine._recover", lambda self, error: self.events.release())
    for part, method, kind in (("block_pool", "allocate", "exception"), ("detokenizer", "push", "interrupt")):
        try:
            found = sweep(stage, part, method, kind, most=4)
        except Exception as error:  # the broken engine may also raise
            found = [repr(error)]
        assert found


# ---- parts that return wrong values -----------------------------------------------------------------


def instead(result: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **named: result(*args)


def method(cls: type, name: str, result: Any) -> Callable[..., Any]:
    """A factory of objects with one method that returns a wrong value."""
    made = type("Rubbish", (cls,), {name: result if isinstance(result, property) else instead(result)})
    return lambda *args: made(*args)


def drafting(result: Callable[..., Any]) -> Callable[..., Any]:
    cls = type("Rubbish", (Drafter,), {"propose": lambda self, lookaheads: result(lookaheads)})
    return lambda model, config: cls(tiny.VOCAB_SIZE)


V = tiny.VOCAB_SIZE
NOT_A_LIST: list[Callable[..., Any]] = [lambda *a: None, lambda *a: 5]
TOKENS = [
    *NOT_A_LIST,
    lambda logits, batch: [3] * len(logits),
    lambda logits, batch: torch.zeros(len(logits) + 1, dtype=torch.int64),
    lambda logits, batch: torch.zeros(0, dtype=torch.int64),
    lambda logits, batch: torch.zeros(len(logits), 1, dtype=torch.int64),
    lambda logits, batch: torch.zeros(len(logits)),
    lambda logits, batch: torch.full((len(logits),), -1),
    lambda logits, batch: torch.full((len(logits),), V),
    lambda logits, batch: torch.full((len(logits),), 1 << 40),
]
LOGITS = [
    *NOT_A_LIST,
    lambda runner, rows: torch.zeros(len(rows) + 1, V),
    lambda runner, rows: torch.zeros(len(rows) - 1, V),
    lambda runner, rows: torch.zeros(len(rows), V - 1),
    lambda runner, rows: torch.zeros(len(rows), V, 1),
    lambda runner, rows: torch.zeros(len(rows), V, dtype=torch.int64),
]
SLOTS = [
    *NOT_A_LIST,
    lambda table, positions, size: [],
    lambda table, positions, size: [0] * (len(positions) + 1),
    lambda table, positions, size: [-1] * len(positions),
    lambda table, positions, size: [1 << 30] * len(positions),
    lambda table, positions, size: [1 << 70] * len(positions),
    lambda table, positions, size: [None] * len(positions),
    lambda table, positions, size: [0.5] * len(positions),
]
SHAPES = [
    *NOT_A_LIST,
    lambda x, *rest: x[:-1],
    lambda x, *rest: x.unsqueeze(0),
    lambda x, *rest: x[..., :1],
    lambda x, *rest: x.double(),
    lambda x, *rest: x.long(),
]
BLOCKS = [
    *NOT_A_LIST,
    lambda self, count=1: [],
    lambda self, count=1: [0] * (count + 1),
    lambda self, count=1: [-1] * count,
    lambda self, count=1: [self.num_blocks] * count,
    lambda self, count=1: [None] * count,
    lambda self, count=1: list(range(count)),  # blocks that were not allocated
]
PROPOSALS = [
    *NOT_A_LIST,
    lambda asked: [],
    lambda asked: [None for _ in asked],
    lambda asked: [Proposal(None) for _ in asked],  # type: ignore[arg-type]
    lambda asked: [Proposal([None]) for _ in asked],  # type: ignore[list-item]
    lambda asked: [Proposal([[None]]) for _ in asked],  # type: ignore[list-item]
    lambda asked: [Proposal([[1.5]]) for _ in asked],  # type: ignore[list-item]
    lambda asked: [Proposal([[-1]]) for _ in asked],
    lambda asked: [Proposal([[V]]) for _ in asked],
    lambda asked: [Proposal([[1] * 99]) for _ in asked],
    lambda asked: [Proposal([[1]] * 99) for _ in asked],
    lambda asked: [Proposal([[1]], torch.zeros(1, 3)) for _ in asked],
    lambda asked: [Proposal([[1]], [0.5]) for _ in asked],  # type: ignore[arg-type]
    lambda asked: [Proposal([[1]], torch.ones(1, V, dtype=torch.int64)) for _ in asked],
]
PLANS: list[Callable[..., Any]] = [
    *NOT_A_LIST,
    lambda self, now: [],
    lambda self, now: StepPlan(decode=[r for r in waiting(self)]),
    lambda self, now: StepPlan(prefill=[chunk(r, 1, 2) for r in waiting(self)]),
    lambda self, now: StepPlan(prefill=[chunk(r, 0, 0) for r in waiting(self)]),
    lambda self, now: StepPlan(prefill=[chunk(r, 0, 999) for r in waiting(self)]),
    lambda self, now: StepPlan(prefill=[chunk(r, 0, 2) for r in waiting(self) * 2]),
    lambda self, now: StepPlan(prefill=[None]),  # type: ignore[list-item]
    lambda self, now: StepPlan(decode=[None]),  # type: ignore[list-item]
    lambda self, now: StepPlan(decode=None),  # type: ignore[arg-type]
    lambda self, now: StepPlan(prefill=[chunk(r, 0.0, 2.0) for r in waiting(self)]),
    lambda self, now: StepPlan(num_blocks="x"),  # type: ignore[arg-type]
    lambda self, now: StepPlan(blocks=None),  # type: ignore[arg-type]
]
CACHED: list[tuple[str, Callable[..., Any]]] = [
    *(("match", result) for result in NOT_A_LIST),
    ("match", lambda self, scope, blocks: [None] * 50),
    *(("acquire", result) for result in NOT_A_LIST),
    ("acquire", lambda self, blocks: []),
    ("acquire", lambda self, blocks: [None] * len(blocks)),
    ("acquire", lambda self, blocks: [10**6] * len(blocks)),
    *(("publish", result) for result in NOT_A_LIST),
]
BAD_COUNTS = (None, "x", 1.5, -1)
COUNTS: list[tuple[str, str, Any]] = [  # (part, scenario, factory): one number is of the wrong type or range
    ("block_pool", "fork", lambda value: method(BlockPool, "num_free", property(lambda self: value))),
    ("prefix_cache", "prefix", lambda value: method(PrefixCache, "num_unused", property(lambda self: value))),
    ("prefix_cache", "preempt", lambda value: method(PrefixCache, "evict", lambda self, count: value)),
    ("prefix_cache", "prefix", lambda value: method(PrefixCache, "digest", lambda *a: value)),
    ("prefix_cache", "prefix", lambda value: method(PrefixCache, "is_unused", lambda *a: value)),
]
TEXTS = [lambda *a: None, lambda *a: 5, lambda *a: b"text", lambda *a: ["t"]]


def waiting(scheduler: Any) -> list[Any]:
    return [r for line in scheduler.waiting._lines.values() for r in line] + scheduler.running


def chunk(sequence: Any, start: int, end: int) -> Any:
    from minillm.engine.step_plan import Chunk

    return Chunk(sequence, start, end)


RUBBISH: list[tuple[str, str, Any]] = [
    *(("sampler", "chain" if i % 2 else "decode", instead(r)) for i, r in enumerate(TOKENS)),
    *(("sampler", "chain", instead(r)) for r in TOKENS),
    *(("prefill_loop", "prefill", instead(r)) for r in LOGITS),
    *(("decode_loop", "decode", instead(r)) for r in LOGITS),
    *(("slot_mapping", "fork", instead(r)) for r in SLOTS),
    *(("slot_mapping", "tree", instead(r)) for r in SLOTS),
    *((part, "decode", instead(r)) for part in ("rope", "attention", "linear", "read_cache") for r in SHAPES),
    *(("block_pool", "fork", method(BlockPool, "allocate", r)) for r in BLOCKS),
    *(("scheduler", "decode", method(Scheduler, "schedule", r)) for r in PLANS),
    *(("prefix_cache", "prefix", method(PrefixCache, name, r)) for name, r in CACHED),
    *(("detokenizer", "decode", method(Detokenizer, "push", r)) for r in TEXTS),
    *(("detokenizer", "decode", method(Detokenizer, "finish", r)) for r in TEXTS),
    *(("drafter", "chain", drafting(r)) for r in PROPOSALS),
]


@pytest.mark.parametrize(
    ("part", "name", "rubbish"), RUBBISH, ids=[f"{p}-{n}-{i}" for i, (p, n, _) in enumerate(RUBBISH)]
)
def test_rubbish_is_refused_by_the_name_of_its_part(stage: Stage, part: str, name: str, rubbish: Any) -> None:
    stage.expected(name)
    run = stage.run(name, engine=stage.engine(name, {part: rubbish}))
    errors = [output.error for output in run.outputs.values() if output.error is not None]
    assert errors and all(isinstance(e, PartError) and part in str(e) for e in [*errors, *run.raised]), errors
    assert all(run.finals[i] == 1 for i in run.ids) and not pool_faults(run.engine)
    expected = stage.expected(name)
    for mine, theirs in zip(run.ids, expected.ids, strict=True):
        for a, b in zip(run.outputs[mine].outputs, expected.outputs[theirs].outputs, strict=True):
            assert a.token_ids == b.token_ids[: len(a.token_ids)], "a wrong result must raise"
            assert a.finish_reason == "error" or a.token_ids == b.token_ids


@pytest.mark.parametrize(
    ("part", "name", "made"), COUNTS, ids=[f"{p}-{i}" for i, (p, _, _) in enumerate(COUNTS)]
)
@pytest.mark.parametrize("value", BAD_COUNTS)
def test_a_wrong_number_is_refused_by_the_name_of_its_part(
    stage: Stage, part: str, name: str, made: Any, value: Any
) -> None:
    stage.expected(name)
    run = stage.run(name, engine=stage.engine(name, {part: made(value)}))
    errors = [output.error for output in run.outputs.values() if output.error is not None]
    assert [*errors, *run.raised], "nobody noticed"
    assert all(isinstance(e, PartError) and part in str(e) for e in [*errors, *run.raised]), errors
    assert all(run.finals[i] == 1 for i in run.ids if i)


VERIFIED: list[Callable[..., Any]] = [
    *NOT_A_LIST,
    lambda draft, *rest: (torch.zeros(len(draft), draft.shape[1] + 1, dtype=torch.int64),),
    lambda draft, *rest: (torch.zeros(len(draft), 1), torch.zeros(len(draft), dtype=torch.int64)),
    lambda draft, *rest: (ids(draft, 0), torch.full((len(draft),), draft.shape[1] + 1)),
    lambda draft, *rest: (ids(draft, 0), torch.full((len(draft),), -1)),
    lambda draft, *rest: (ids(draft, V), torch.full((len(draft),), 0)),
    lambda draft, *rest: (ids(draft, -1), torch.full((len(draft),), 0)),
    lambda draft, *rest: (ids(draft, 0), torch.full((len(draft),), 0.5)),
    lambda draft, *rest: (ids(draft, 0), (draft >= 0).sum(1)),  # accepted, but not the draft's tokens
]


def ids(draft: torch.Tensor, value: int) -> torch.Tensor:
    return torch.full((len(draft), draft.shape[1] + 1), value)


@pytest.mark.parametrize("rubbish", VERIFIED)
def test_a_rubbish_rule_of_rejection_is_refused(stage: Stage, rubbish: Any) -> None:
    parts = {"verify_draft": instead(rubbish), "drafter": lambda model, config: Drafter(V)}
    options = {"draft_verification": "rejection", "num_draft_tokens": 3, "adaptive_draft": False}
    llm = tiny.load(stage.folder, backend="native", parts=parts, **options)
    with pytest.raises(PartError, match="verify_draft"):
        llm.generate([LONG, [5]], greedy(6))
    assert tiny.all_free(llm)


def test_logits_of_nan_from_a_part_end_their_request(stage: Stage) -> None:
    def broken(runner: Any, rows: Any) -> torch.Tensor:
        logits = Parts().decode_loop(runner, rows).clone()
        logits[[row.position > 16 for row in rows]] = float("nan")
        return logits

    run = stage.run("decode", engine=stage.engine("decode", {"decode_loop": broken}))
    assert stage.faults("decode", run) == []
    assert {o.finish_reason for o in run.outputs.values()} == {"error", "length"}


# ---- listeners --------------------------------------------------------------------------------------


def raises(llm: LLM, event: Any) -> None:
    raise RuntimeError("listener")


def asks(llm: LLM, event: Any) -> None:
    assert llm.engine.stats()["num_blocks"] and llm.engine.has_unfinished_requests() is not None


def adds(llm: LLM, event: Any) -> None:
    if event.kind == "finish" and event["reason"] == "length":  # not at the end of those it adds
        llm.engine.abort_request(llm.engine.add_request([5], greedy(2)))


def aborts_unknown(llm: LLM, event: Any) -> None:
    llm.engine.abort_request("nobody")


def steps(llm: LLM, event: Any) -> None:
    if event.step and event.kind == "step":
        llm.engine.step()


def generates(llm: LLM, event: Any) -> None:
    if event.kind == "step":
        llm.generate([5], greedy(1))


def logits(llm: LLM, event: Any) -> None:
    if event.kind == "step":
        llm.logits([5])


@pytest.mark.parametrize("listener", [raises, asks, adds, aborts_unknown, steps, generates, logits])
def test_a_listener_harms_nobody(stage: Stage, listener: Callable[..., None]) -> None:
    """A listener may query, add and abort. Its `step` is refused. If it raises, nothing else happens."""
    llm, caught = tiny.load(stage.folder, backend="native"), list[BaseException]()
    expected = [
        o.token_ids for o in tiny.load(stage.folder, backend="native").generate([LONG, [5]], greedy(5))
    ]

    def listen(event: Any) -> None:
        try:
            listener(llm, event)
        except BaseException as error:
            caught.append(error)
            raise

    llm.engine.events.listeners.append(listen)
    found = list[Any]()
    worker = threading.Thread(target=lambda: found.extend(llm.generate([LONG, [5]], greedy(5))), daemon=True)
    worker.start()
    worker.join(30)
    assert not worker.is_alive() and [o.token_ids for o in found] == expected
    kinds = {steps: EngineBusy, generates: EngineBusy, logits: EngineBusy, raises: RuntimeError}
    assert {type(e) for e in caught} == ({kinds[listener]} if listener in kinds else set())
    llm.engine.events.listeners.clear()
    finish(llm.engine)
    assert tiny.all_free(llm)


def test_a_listener_that_stops_the_program_loses_nothing(stage: Stage) -> None:
    """A BaseException reaches the caller between steps; the next step returns the outputs."""
    engine = stage.engine("decode")
    due = [True]

    def stop(event: Any) -> None:
        if event.kind == "finish" and due:
            due.clear()
            raise Stopped

    engine.events.listeners.append(stop)
    run = stage.run("decode", engine=engine)
    assert [type(e) for e in run.raised] == [Stopped] and stage.faults("decode", run) == []


def test_parts_and_listeners_run_without_the_lock(stage: Stage) -> None:
    """While any part or listener runs, another thread can add, abort and query."""
    engines: list[Any] = []

    def look() -> None:
        assert not engines or not engines[0]._registry.lock.locked()

    def looking(work: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*args: Any) -> Any:
            look()
            return work(*args)

        return looked

    class Watched(Fuse):
        def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
            return looking(work)

    watched, parts = Watched(None, Stopped()), dict[str, Any]()

    def maker(made: type) -> Callable[..., Any]:
        return lambda *args: made(V) if issubclass(made, Drafter) else made(*args)

    for part, (cls, names) in METHODS.items():
        made = watched.methods(cls, *(n for n in names if n not in ("num_free", "num_unused", "ref_count")))
        parts[part] = maker(made)
    parts |= {name: looking(work) for name, work in FUNCTIONS.items()}
    for name in SCENARIOS:
        engines[:] = [stage.engine(name, parts)]
        engines[0].events.listeners.append(lambda event: look())
        run = stage.run(name, engine=engines[0])
        assert run.raised == [] and all(o.error is None for o in run.outputs.values())


def test_an_error_is_told_to_each_by_itself(folder: Path) -> None:
    """Two requests do not share an error object: its traceback would show the frames of the other."""

    def broken(runner: Any, rows: Any) -> Any:
        raise Broken(5, extra="kept")

    llm = tiny.load(folder, parts={"decode_loop": broken})
    a, b = llm.stream([5], greedy(5)), llm.stream([6], greedy(5))
    with pytest.raises(Broken):
        list(a)
    assert b.result.finish_reason == "error"
    with pytest.raises(Broken) as caught:
        list(b)
    assert a.output and b.output and a.output.error is not b.output.error
    assert isinstance(a.output.error, Broken) and a.output.error.args == (5,)
    assert caught.value.extra == "kept" and not isinstance(caught.value, MinillmError)
