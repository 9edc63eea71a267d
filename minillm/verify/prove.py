"""Proves the guarantees of an engine on this machine, each with a control that must fail.

    G0  the same call twice in one engine          control: a product that changes from call to call
    G1  alone against batches                      control: a product that depends on the number of rows
    G2  alone against chunks, hits, preemption..   the same control, in one of these worlds
    G3  another engine, another process            control: a product that depends on the process

    for each world:  run the requests --> tokens and logits --torch.equal--> those of the run alone

A guarantee has held if something was compared and nothing differed. Its control has failed, as it must, if
the same comparison found a difference. A control that finds none means that the comparison is blind: then
nothing is proved, whatever held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from minillm.config import EngineConfig
from minillm.engine.engine import Engine
from minillm.engine.guarantee import MEANINGS
from minillm.model.loader import LoadedModel
from minillm.verify.replica import other_process
from minillm.verify.weakened import BATCH, REPLICA, RUN, WHAT, weakened
from minillm.verify.worlds import (
    ALONE,
    COMPANY,
    Answer,
    World,
    equal,
    make_requests,
    run_world,
    scheduled,
    world_engine,
)

PROVABLE = ("G0", "G1", "G2", "G3")
_CALL = World("the same call twice")
_FRESH = World("another engine")


@dataclass
class Count:
    """What was compared: answers, and the rows of logits in them; how many answers differed."""

    answers: int = 0
    rows: int = 0
    differing: int = 0
    first: str = ""  # where the first difference is

    def add(self, a: dict[int, Answer], b: dict[int, Answer], name: str) -> None:
        """Compare the answers that both have."""
        for i in sorted(a.keys() & b.keys()):
            self.answers += 1
            self.rows += min(len(a[i].rows), len(b[i].rows))
            if not equal(a[i], b[i]):
                self.differing += 1
                self.first = self.first or f"{name}, request {i}"


@dataclass
class Proof:
    """One guarantee: the worlds that were compared to the end, of how many, and the control."""

    level: str
    promised: bool
    worlds: list[str] = field(default_factory=list)
    planned: int = 0
    count: Count = field(default_factory=Count)
    control: str = ""
    control_count: Count = field(default_factory=Count)
    note: str = ""

    @property
    def meaning(self) -> str:
        """The guarantee in words."""
        return MEANINGS[self.level]

    @property
    def held(self) -> bool:
        """Whether something was compared, and nothing differed."""
        return self.count.answers > 0 and self.count.differing == 0 and not self.note

    @property
    def control_failed(self) -> bool:
        """Whether the weakened model was noticed, as it must be."""
        return self.control_count.differing > 0


class Prover:
    """Runs the worlds of each guarantee with one loaded model. `deadline`: a time of `time.monotonic`."""

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig,
        draft: LoadedModel | None,
        deadline: float,
        report: Callable[[str], None] = lambda world: None,
    ) -> None:
        self._model, self._config, self._draft = model, config, draft
        self._deadline, self._report = deadline, report
        self._requests = make_requests(model)
        self._alone = dict[int, Answer]()

    def prove(self, promised: Callable[[str], bool], levels: Sequence[str] = PROVABLE) -> list[Proof]:
        """Prove these levels. G2 has the most worlds and comes last; it ends when the time is over."""
        steps = {
            "G0": self._run_to_run,
            "G1": self._any_batch,
            "G3": self._replicas,
            "G2": self._any_schedule,
        }
        shares = {"G0": 0.3, "G1": 0.3, "G3": 0.6, "G2": 1.0}  # of the time that is left
        proofs = []
        for level in (level for level in steps if level in levels):
            left = self._deadline - time.monotonic()
            proof = Proof(level, promised(level))
            steps[level](proof, time.monotonic() + left * shares[level])
            if not proof.note and proof.count.answers == 0:
                proof.note = "the time was over before anything was compared"
            proofs.append(proof)
        return sorted(proofs, key=lambda proof: proof.level)

    def _run_to_run(self, proof: Proof, until: float) -> None:
        self._twice(self._model, proof.count, until)
        proof.worlds, proof.planned = [_CALL.name], 1
        proof.control = WHAT[RUN]
        self._twice(weakened(self._model, RUN), proof.control_count, until)

    def _twice(self, model: LoadedModel, count: Count, until: float) -> None:
        """The same call in the same engine, with the user's own options."""
        self._report(_CALL.name)
        engine = self._engine(model, _CALL)
        first = self._answers(engine, _CALL, until)
        count.add(first, self._answers(engine, _CALL, until), _CALL.name)

    def _any_batch(self, proof: Proof, until: float) -> None:
        self._against_alone(proof, list(COMPANY), until)

    def _any_schedule(self, proof: Proof, until: float) -> None:
        worlds = scheduled(self._config)
        if len(worlds) < len(scheduled(replace(self._config, draft_verification="coupled"))):
            proof.note = "under rejection sampling drafts decide draws"
        self._against_alone(proof, worlds, until)

    def _against_alone(self, proof: Proof, worlds: list[World], until: float) -> None:
        """Compare with the run alone; the control first, so that the time never ends before it."""
        proof.control, proof.planned = WHAT[BATCH], len(worlds)
        faulty = weakened(self._model, BATCH)
        alone = self._answers(self._engine(faulty, ALONE), ALONE, until)
        company = self._answers(self._engine(faulty, worlds[0]), worlds[0], until)
        proof.control_count.add(alone, company, worlds[0].name)
        if not self._alone:
            self._report(ALONE.name)
            self._alone = self._answers(self._engine(self._model, ALONE), ALONE, until)
        for world in worlds:
            if time.monotonic() > until:
                break
            self._report(world.name)
            found = self._answers(self._engine(self._model, world), world, until)
            proof.count.add(self._alone, found, world.name)
            if len(found) == len(self._requests.prompts):
                proof.worlds.append(world.name)

    def _replicas(self, proof: Proof, until: float) -> None:
        proof.planned, proof.control = 2, WHAT[REPLICA]
        engines = [self._engine(self._model, _FRESH) for _ in range(2)]
        here, there = (self._answers(engine, _FRESH, until) for engine in engines)
        proof.count.add(here, there, _FRESH.name)
        proof.worlds.append(_FRESH.name)
        self._report("another process")
        options = engines[0].config
        replica = other_process(self._model.folder, options, engines[0].envelope["execution"], until)
        if replica.problem:
            proof.note = replica.problem
            return
        proof.count.add(here, replica.answers, "another process")
        proof.worlds.append("another process")
        proof.control_count.add(here, replica.weakened, "another process")

    def _engine(self, model: LoadedModel, world: World) -> Engine:
        return world_engine(model, self._config, self._draft, world, self._requests)

    def _answers(self, engine: Engine, world: World, until: float) -> dict[int, Answer]:
        return run_world(engine, world, self._requests, until)
