"""Contract C6 with faulty ops: call number k of one op raises, in prefill, decode, verification or drafting.

Exactly the requests of that step end with the error; after an interrupt none does. The other answers keep
their bits, every block is free afterwards, and the engine serves a new request. The ops run one by one and
fused. The control is a recovery that does nothing.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from fuses import Broken, Fuse, Stopped
from scenarios import LONG, SCENARIOS, SPECULATIVE, Scenario, Stage, drawn, greedy, pool_faults
from tiny import VOCAB_SIZE

from minillm import MinillmError
from minillm.config import engine_config
from minillm.engine.engine import Engine
from minillm.model.loader import LoadedModel
from minillm.ops.cpu import CpuOps
from minillm.ops.fused import FusedOps, ModelWeights
from minillm.speculation.pairing import load_draft
from minillm.speculation.scripted import RandomDrafter

LAYER_OPS = "embedding linear rms_norm add_rms_norm act_and_mul rope_and_cache paged_attention sample"
ONE_BY_ONE = [
    *((op, name) for op in LAYER_OPS.split() for name in ("prefill", "decode", "tree", "draft")),
    ("finite_rows", "decode"),
    ("finite_rows", "tree"),
    ("sample", "draft tree"),
    *(("copy_blocks", name) for name in ("fork", "tree", "draft tree")),
    *(("token_logprobs", name) for name in ("fork", "tree")),
    *(("verify_coupled", name) for name in ("chain", "tree")),
]
FUSED = [
    ("last_logits", "draft tree"),
    *(("step", name) for name in ("prefill", "decode", "preempt", "chain", "tree")),
    ("decode_ahead", "draft"),
]
# A draft model that is the target, so every draft token is accepted. One request waits while others run.
WITH_DRAFT = Scenario(
    [(0, LONG[:12], greedy(9)), (0, [5, 6], drawn(7, top_k=9)), (2, [5], drawn(4))],
    disturbed=[1],
    options={"num_draft_tokens": 3, "max_num_seqs": 2, **SPECULATIVE},
)
WITH_DRAFTS = {
    "draft": WITH_DRAFT,
    "draft tree": replace(WITH_DRAFT, options={"draft_tree": (2, 1), "max_num_seqs": 2, **SPECULATIVE}),
}


class Ops:
    """The native ops without their fused form; `op` runs through the fuse."""

    def __init__(self, inner: Any, op: str, fuse: Fuse) -> None:
        self._inner, self._op, self._fuse = inner, op, fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._fuse.around(found) if name == self._op else found


class Bound(Ops, FusedOps):
    """The native ops with their fused form, one method of which runs through the fuse."""

    def can_bind(self, weights: ModelWeights) -> bool:
        return self._inner.can_bind(weights)

    def bind(self, *args: Any) -> Any:
        return Ops(self._inner.bind(*args), self._op, self._fuse)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    made = Stage(tmp_path_factory.mktemp("stage") / "model")
    plain = replace(WITH_DRAFT, options={"max_num_seqs": 2})
    made._expected |= dict.fromkeys(WITH_DRAFTS, made.run("draft", scenario=plain))
    return made


def make_engine(stage: Stage, name: str, ops: Ops) -> Engine:
    """An engine of the scenario with these ops; with a draft model that one has them, the target does not."""
    if name in WITH_DRAFTS:
        options = {"block_size": 8, "dtype": "float32", "kv_memory": "1MiB", **WITH_DRAFTS[name].options}
        config = engine_config({**options, "draft_model": stage.folder})
        draft = load_draft(stage.model, config)
        assert draft is not None
        return Engine(stage.model, config, {}, with_ops(draft, ops))
    if SCENARIOS[name].scripted:
        stage.expected(name)
    other = copy.copy(stage)
    other.model = with_ops(stage.model, ops)
    return other.engine(name)


def with_ops(model: LoadedModel, ops: Ops) -> LoadedModel:
    return replace(model, decoder=model.decoder.with_ops(ops))  # type: ignore[arg-type]


def faults_at(stage: Stage, name: str, kind: type[Ops], op: str, fuse: Fuse) -> list[str]:
    """Run the scenario with one fault and return what is wrong."""
    engine, planned = make_engine(stage, name, kind(CpuOps(), op, fuse)), set[str]()
    fuse.blew = lambda: planned.update(s.request_id for s in engine._stepper.step.plan.sequences)
    scenario = WITH_DRAFTS.get(name) or SCENARIOS[name]
    run = stage.run(name, scenario=scenario, engine=engine)
    at, calls, fuse.at = fuse.at, fuse.calls, None
    is_interrupt = isinstance(fuse.error, Stopped)
    found = stage.faults(name, run, error=MinillmError if is_interrupt else Broken)
    ended = {i for i, output in run.outputs.items() if output.error is not None}
    if ended != (set() if is_interrupt else planned):
        found.append(f"{ended} ended with an error, not {planned}")
    if at is not None and (fuse.blown, len(run.raised)) != (1, 1):
        found.append(f"blown {fuse.blown} times, raised {run.raised}")
    fuse.calls = calls  # without those of the request that `faults` adds
    return [f"{op} in {name}, call {at} of {fuse.calls}, {fuse.error!r}: {fault}" for fault in found]


def sweep(stage: Stage, name: str, kind: type[Ops], op: str, most: int) -> list[str]:
    counted = Fuse(None, Stopped())
    found = faults_at(stage, name, kind, op, counted)
    calls = counted.calls
    assert calls, f"{op} is never called in {name}"
    for number, at in enumerate(sorted({0, calls - 1, *range(0, calls, max(1, calls // most))})):
        for error in (Broken(5, extra="kept"), Stopped()):
            found += faults_at(stage, name, kind, op, Fuse(at, error, behind=number % 2 == 1))
    return found


@pytest.mark.parametrize(("op", "name"), ONE_BY_ONE)
def test_an_op_raises(stage: Stage, op: str, name: str) -> None:
    assert sweep(stage, name, Ops, op, most=2) == []


@pytest.mark.parametrize(("op", "name"), FUSED)
def test_a_fused_op_raises(stage: Stage, op: str, name: str) -> None:
    assert sweep(stage, name, Bound, op, most=3) == []


@pytest.mark.slow
@pytest.mark.parametrize(("op", "name"), ONE_BY_ONE)
def test_an_op_raises_at_many_calls(stage: Stage, op: str, name: str) -> None:
    assert sweep(stage, name, Ops, op, most=40) == []


@pytest.mark.slow
@pytest.mark.parametrize(("op", "name"), FUSED)
def test_a_fused_op_raises_at_many_calls(stage: Stage, op: str, name: str) -> None:
    assert sweep(stage, name, Bound, op, most=40) == []


@pytest.mark.parametrize("error", [Broken(5, extra="kept"), Stopped()], ids=repr)
@pytest.mark.parametrize("op", ["embedding", "paged_attention", "linear"])
def test_an_op_raises_in_logits(stage: Stage, op: str, error: BaseException) -> None:
    """A failed `logits` call keeps no block and disturbs no request that runs at the same time."""
    stage.expected("decode")
    for behind in (False, True):
        fuse = Fuse(None, error, behind)
        engine = make_engine(stage, "decode", Ops(CpuOps(), op, fuse))

        def interfered(engine: Engine, fuse: Fuse = fuse) -> Any:
            fuse.at, before = fuse.calls, engine.memory.available
            with pytest.raises(type(error)):
                engine.logits(LONG)
            fuse.at = None
            assert engine.memory.available == before
            return engine.step()

        run = stage.run("decode", step=2, around=interfered, engine=engine)
        assert fuse.blown == 1 and run.raised == [] and stage.faults("decode", run) == []
        assert all(output.error is None for output in run.outputs.values())


@pytest.mark.parametrize("at", [0, 2])
def test_the_rule_of_rejection_raises(stage: Stage, at: int) -> None:
    """The answers depend on the drafts here, so only the end of every request and the blocks are checked."""
    fuse = Fuse(at, Broken(5, extra="kept"))
    model = with_ops(stage.model, Ops(CpuOps(), "verify_draft", fuse))
    options = {"block_size": 8, "dtype": "float32", "kv_memory": "1MiB", "num_draft_tokens": 3}
    config = engine_config({**options, **SPECULATIVE, "draft_verification": "rejection"})
    engine = Engine(model, config, {"drafter": lambda model, config: RandomDrafter(VOCAB_SIZE)})
    scenario = Scenario([(0, [5, 6, 7] * 6, greedy(12)), (0, [8, 9] * 8, drawn(12))], disturbed=[])
    run = stage.run("decode", scenario=scenario, engine=engine)
    assert fuse.blown == 1 and [type(e) for e in run.raised] == [Broken]
    assert all(run.finals[i] == 1 for i in run.ids) and pool_faults(engine) == []


@pytest.mark.parametrize("broken", ["_recover", "give_up"])
def test_a_recovery_that_does_nothing_is_noticed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The control: without recovery the fault of an op does harm."""
    stage.expected("decode"), stage.fresh()
    if broken == "_recover":
        monkeypatch.setattr(Engine, "_recover", lambda self, error: self.events.release())
    else:
        monkeypatch.setattr("minillm.engine.engine.give_up", lambda live, affected, error: None)
    assert faults_at(stage, "decode", Ops, "linear", Fuse(20, Broken(5, extra="kept"))) != []
