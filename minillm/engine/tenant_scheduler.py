"""The scheduler of an engine with tenant limits: one lane for each tenant with a guarantee, one for the rest.

    a step of 512 tokens                        each lane is a scheduler of its own (`scheduler.py`)
    +------------+---------+-----------------+  over its own share of the memory (`tenant_memory.py`)
    | anna 128   | ben 64  | everybody else  |
    +------------+---------+-----------------+  a step's plan is the sum of the lanes' plans
      reserved     reserved   common: what the reserved lanes leave, at least 512 - 128 - 64

A reserved lane plans as if its tenant were alone in an engine with `guaranteed_blocks` blocks and steps of
`guaranteed_tokens_per_step` tokens. So its decisions are the same whatever others do (contract C12). Only a
sequence that is alone in its lane and needs still more blocks borrows common ones. Then the tenant is outside
its guarantee and competes with others.

Lanes compete for common blocks in the order of submission: while a request waits for them, no younger one of
another lane starts with them. Running requests go on, so the oldest gets its turn.

Idea: Mace et al., "2DFQ" (SIGCOMM 2016) and Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024) share one queue fairly; here shares are fixed, because a fair share depends on the others' load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from minillm.config import EngineConfig
from minillm.config.tenants import UNLIMITED, TenantLimits
from minillm.engine.checked import check_plan
from minillm.engine.quota import Quota
from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler, max_running
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import LanePlan, StepPlan
from minillm.engine.tenant_memory import LaneMemory, TenantMemory
from minillm.errors import UsageError
from minillm.memory.block_table import blocks_for
from minillm.observe.events import Events

MakeScheduler = Callable[[EngineConfig, LaneMemory, Events], Scheduler]


class LaneConfig:
    """The engine's configuration with the sizes that one lane may use in this step."""

    def __init__(self, engine: EngineConfig, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._engine = engine
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@dataclass
class Lane:
    """A scheduler over one share. `places_in_all`: the sequences it may run; used if it is reserved.

    `blocked`: the submission number of a request that waits for blocks. `plan`: its part of the last step.
    """

    scheduler: Scheduler
    memory: LaneMemory
    config: LaneConfig
    is_reserved: bool
    places_in_all: int
    blocked: int | None = None
    plan: StepPlan = field(default_factory=StepPlan)

    @property
    def places(self) -> int:
        """Sequences that run or will fork from a running one."""
        running = self.scheduler.running
        return len(running) + sum(len(sequence.forks) for sequence in running)

    @property
    def num_decoding(self) -> int:
        """Running sequences past their prefill."""
        return sum(not sequence.is_prefilling for sequence in self.scheduler.running)

    def head(self, now: float) -> Sequence | None:
        """The waiting sequence that starts next."""
        return self.scheduler.waiting.first(now)

    def must_borrow(self, now: float) -> bool:
        """Whether a sequence that has the lane for itself needs more than all guaranteed blocks."""
        alone = self.alone(now)
        return alone is not None and self._blocks(alone) > self.memory.pool.guaranteed

    def alone(self, now: float) -> Sequence | None:
        """The only running sequence; if none runs, the next one; None if several run."""
        running = self.scheduler.running
        return running[0] if len(running) == 1 else None if running else self.head(now)

    def _blocks(self, sequence: Sequence) -> int:
        """Blocks for the sequence's tokens and one more, and for the copies of its forks."""
        size = self.memory.pool.block_size
        copies = sequence.num_forks if sequence.num_tokens % size else 0
        return blocks_for(sequence.num_tokens + 1, size) + copies

    def fits_guarantee(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence can start without common blocks."""
        found = self.memory.match(sequence)
        revived = self.memory.available - self.memory.available_without(found)
        return self._blocks(sequence) - len(found) + revived <= self.memory.pool.guarantee_left


def reserved_places(config: EngineConfig) -> dict[object, int]:
    """For each tenant with guaranteed tokens, the sequences it can run at once; None: all other tenants.

    The places of an engine are divided among them in proportion to the tokens.

    Raises:
        UsageError: more tenants have guaranteed tokens than sequences can run at once.
    """
    everybody = (config.tenant_limits or {}).values()
    total, most = sum(limit.guaranteed_tokens_per_step for limit in everybody), config.max_num_seqs
    tokens = {tenant: limit.guaranteed_tokens_per_step for tenant, limit in config.guaranteed.items()}
    named: dict[object, int] = {
        tenant: min(count, max(1, most * count // total)) for tenant, count in tokens.items() if count
    }
    if sum(named.values()) > most:
        raise UsageError(
            f"{len(named)} tenants have guaranteed tokens, but only {most} sequences run at once",
            "raise max_num_seqs",
        )
    others = config.max_num_batched_tokens - sum(tokens.values())
    return {**named, None: min(others, max_running(config))}


def most_running(config: EngineConfig, tenant: str | None) -> int:
    """The most sequences of a tenant that run at once."""
    if not config.tenant_limits:
        return max_running(config)
    places = reserved_places(config)
    return places.get(tenant, places[None])


class TenantScheduler:
    """Runs the lanes of all tenants. It has `Scheduler`'s methods. `drafts`: the engine speculates."""

    def __init__(
        self,
        config: EngineConfig,
        memory: TenantMemory,
        events: Events,
        make: MakeScheduler,
        quota: Quota,
        drafts: bool,
    ) -> None:
        self._drafts = drafts
        self._config, self._memory, self._events, self._quota = config, memory, events, quota
        self._lanes: dict[object, Lane] = {}
        places = reserved_places(config)
        for key, lane_memory in memory.lanes.items():
            limit = memory.limits[key] if isinstance(key, str) else UNLIMITED
            self._lanes[key] = self._lane(lane_memory, limit, places.get(key, 0), make)
        self._reserved = [lane for lane in self._lanes.values() if lane.is_reserved]
        self._sharing = [lane for lane in self._lanes.values() if not lane.is_reserved]
        self._places_to_share = places[None]
        self._active: Scheduler | None = None

    def _lane(self, memory: LaneMemory, limit: TenantLimits, places: int, make: MakeScheduler) -> Lane:
        tokens = limit.guaranteed_tokens_per_step
        config = LaneConfig(self._config, places, tokens)
        scheduler = make(config, memory, self._events)  # type: ignore[arg-type]
        return Lane(scheduler, memory, config, tokens > 0, places)

    # Requests -------------------------------------------------------------------------------

    @property
    def running(self) -> list[Sequence]:
        """The running sequences of all lanes."""
        return [sequence for lane in self._lanes.values() for sequence in lane.scheduler.running]

    @property
    def waiting(self) -> list[object]:
        """The lines of waiting sequences."""
        return [self._quota, *(lane.scheduler.waiting for lane in self._lanes.values())]

    @property
    def current(self) -> Sequence | None:
        """The sequence that a lane is admitting."""
        return getattr(self._active, "current", None)

    def add(self, request: Request) -> None:
        """Queue a request in its tenant's lane, or park it until the tenant's share has room."""
        if self._quota.add(request.sequences[0]):
            self._of(request.sequences[0]).add(request)

    def fork(self, source: Sequence, child: Sequence) -> None:
        """Run `child`, a fork of `source`."""
        self._of(source).fork(source, child)

    def requeue(self, sequence: Sequence) -> None:
        """Queue a sequence that has lost its blocks."""
        if self._quota.add(sequence):
            self._of(sequence).requeue(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence, running, waiting or parked, and free its blocks."""
        self._quota.remove(sequence)
        self._of(sequence).remove(sequence)

    def _of(self, sequence: Sequence) -> Scheduler:
        return self._lanes[self._memory.key(sequence.tenant)].scheduler

    # A step ---------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan:
        """Plan one step: the reserved lanes, then the others with what is left."""
        plan, most = StepPlan(), self._config.max_num_batched_tokens
        for sequence in self._quota.released(now):
            self._of(sequence).requeue(sequence)
        for lane in self._lanes.values():
            lane.memory.pool.planned = 0
        for lane in self._reserved:
            self._plan(plan, lane, now, lane.places_in_all)
        places = min(self._config.max_num_seqs - _places(self._reserved), self._places_to_share)
        self._shrink(plan, places)
        self._sharing.append(self._sharing.pop(0))  # another lane gets the first choice
        for i, lane in enumerate(self._sharing):
            later = self._sharing[i + 1 :]
            lane.config.max_num_batched_tokens = (
                most - plan.num_rows - sum(each.num_decoding for each in later)
            )
            others = [each for each in self._sharing if each is not lane]
            self._plan(plan, lane, now, places - _places(others))
        if self._drafts:
            self._leave_for_drafts(plan)
        if parked := len(self._quota):
            plan.held["quota"] = parked
        for lane in self._lanes.values():
            lane.memory.pool.planned = 0
        return plan

    def _plan(self, plan: StepPlan, lane: Lane, now: float, places: int) -> None:
        """Add the plan of one lane, which may run `places` sequences."""
        keeps_to_itself = lane.is_reserved and lane.memory.pool.guaranteed > 0
        must_borrow = keeps_to_itself and lane.must_borrow(now)
        lane.memory.pool.borrows = must_borrow or not keeps_to_itself
        if must_borrow and (alone := lane.alone(now)):
            places = 1 + alone.num_forks  # nobody starts beside it
        must_wait = self._must_wait(lane, now)
        lane.config.max_num_seqs = lane.places if must_wait else places
        self._active = lane.scheduler
        made = lane.scheduler.schedule(now)
        lane.plan = made if type(lane.scheduler) is Scheduler else check_plan(made)
        self._active = None
        if must_wait and "seqs" in made.held:  # for want of common blocks it was given no places
            made.held["blocks"] = made.held.pop("seqs")
        plan.add(made)
        lane.memory.pool.planned = made.num_blocks
        lane.blocked = None
        if lane.memory.pool.borrows and (head := lane.head(now)):
            has_tokens = made.num_rows < lane.config.max_num_batched_tokens
            if has_tokens and lane.places + 1 + head.num_forks <= places:
                lane.blocked = head.order

    def _must_wait(self, lane: Lane, now: float) -> bool:
        """Whether the lane's next request would take common blocks for which an older one waits."""
        older = [
            other.blocked for other in self._lanes.values() if other.blocked is not None and other is not lane
        ]
        head = lane.head(now) if older and lane.memory.pool.borrows else None
        return head is not None and min(older) < head.order and not lane.fits_guarantee(head)

    def _shrink(self, plan: StepPlan, places: int) -> None:
        """Preempt the newest sequences of the lanes that share, until they fit `places`."""
        while _places(self._sharing) > places:
            lane = max(self._sharing, key=lambda lane: [s.rank for s in lane.scheduler.running[-1:]])
            newest = lane.scheduler.running[-1]
            self._events.emit("preempt", newest.request_id, tokens=newest.num_computed_tokens)
            newest.num_preemptions += 1
            lane.memory.free(newest)
            lane.scheduler.requeue(newest)
            plan.preempted.append(newest)

    def _leave_for_drafts(self, plan: StepPlan) -> None:
        """What each lane may draft: a reserved one in its own share, of the others the first that decodes."""
        unused = 0
        for lane in self._reserved:
            rows = lane.config.max_num_batched_tokens - lane.plan.num_rows
            blocks = lane.memory.pool.guarantee_left
            plan.lanes.append(LanePlan(lane.plan.decode, rows, blocks, is_reserved=True))
            unused += rows
        rows = self._config.max_num_batched_tokens - plan.num_rows - unused
        for lane in self._sharing:
            if lane.plan.decode:
                plan.lanes.append(LanePlan(lane.plan.decode, max(0, rows), lane.memory.available))
                rows = 0


def _places(lanes: Iterable[Lane]) -> int:
    return sum(lane.places for lane in lanes)


AnyScheduler = Scheduler | TenantScheduler
