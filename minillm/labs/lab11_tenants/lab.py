"""Lab 11: tenants: what one may notice of another, and how a flood is kept from the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from minillm.config.tenants import TenantLimits
from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Lab, Part, Task, Words
from minillm.labs.grader.serving import Ask, serve
from minillm.labs.lab11_tenants.queue_cases import QUEUE_CASES, more_queues
from minillm.labs.lab11_tenants.queue_mistakes import QUEUE_MISTAKES
from minillm.labs.lab11_tenants.quota_cases import QUOTA_CASES
from minillm.labs.lab11_tenants.quota_mistakes import QUOTA_MISTAKES
from minillm.labs.lab11_tenants.quota_stage import more_quotas
from minillm.labs.lab11_tenants.reclaim_cases import RECLAIM_CASES, RECLAIM_MISTAKES
from minillm.labs.lab11_tenants.room_cases import ROOM_CASES, ROOM_MISTAKES
from minillm.labs.lab11_tenants.scope_cases import SCOPE_CASES, SCOPE_MISTAKES, more_scopes
from minillm.labs.lab11_tenants.seed_cases import SEED_CASES, SEED_MISTAKES, more_seeds
from minillm.labs.lab11_tenants.share_stage import random_lives
from minillm.labs.lab11_tenants.trim_cases import TRIM_CASES, TRIM_MISTAKES
from minillm.labs.lab11_tenants.worlds import (
    OPEN,
    Others,
    engine_of,
    flood,
    no_log,
    noticed,
    storm,
    warm,
    watch,
)

SHARES = "minillm.memory.shares"
STEP_LINES = 15_000  # for one step of a flooded engine


def quiet_world(parts: Any) -> list[Any]:
    """W0, b alone: hits, steps, counts, errors; of its seeded requests tokens and log-probabilities."""
    view = watch(engine_of(parts))
    errors = [(number, text.partition(":")[0]) for number, text in view.errors]  # texts are the file's own
    seeded = [tokens for tokens in view.tokens if tokens[0] in (1, 3)]
    return [view.hits, sorted(view.steps), view.counts, errors, seeded, view.logprobs[0]]


def warmed_world(parts: Any) -> Words:
    """W1: what the tenant "" notices if a, and somebody without a tenant, have sent its prompts before."""
    quiet, engine = (engine_of(parts, OPEN, 120) for _ in range(2))
    warm(engine)
    return noticed(watch(quiet, tenant=""), watch(engine, tenant=""))


def busy_world(others: Others, seed: int = 11) -> Any:
    """What b notices in a world in which others are busy."""

    def run(parts: Any) -> Words:
        with no_log():
            return noticed(watch(engine_of(parts)), watch(engine_of(parts), others, seed=seed))

    return run


def more_worlds(random: Random) -> Iterable[Case]:
    """Other floods."""
    for others in (flood, storm):
        seed = random.randrange(1 << 30)
        yield Case(f"{others.__name__} {seed}", busy_world(others, seed))


def served(asks: Sequence[Ask], num_blocks: int, **limits: TenantLimits) -> Any:
    """Every step of an engine without a model; the key `others` stands for all tenants that are not named."""
    named = {None if name == "others" else name: limit for name, limit in limits.items()}

    def run(parts: Any) -> list[Any]:
        mine = {"scope": parts.block_scope, "shares": parts.Shares, "quota": parts.Quota}
        return serve(mine, asks, num_blocks, True, tenant_limits=named)

    return run


def step_cost(parts: Any) -> Counted:
    """The lines that run in the step after a flood of 24 requests."""
    engine, random = engine_of(parts), Random(3)
    for step in range(8):
        flood(engine, step, random)
    engine.step()
    return within(STEP_LINES, counted_lines(engine.step), LINES)


MIXED = (
    Ask(21, 9, tenant="ben"),
    Ask(30, 9, tenant="ben"),
    Ask(9, 4, at=1, tenant="ben", story=1),
    Ask(26, 12, at=2, tenant="cleo"),
    Ask(14, 6, at=2, tenant="anna", story=1),
    Ask(17, 20, at=3, tenant="anna"),
    Ask(40, 8, at=4),
    Ask(14, 3, at=14, tenant="anna", story=1),
    Ask(9, 4, at=15, tenant="ben", story=1),
    Ask(30, 3, at=16, n=2),
)
LAB = Lab(
    11,
    "tenants",
    "Tenants: scoped caching and quotas under a flood",
    (
        Task(
            "11.1",
            "whose block is it",
            15,
            Part("minillm.memory.scope", "block_scope"),
            SCOPE_CASES,
            SCOPE_MISTAKES,
            more_scopes,
        ),
        Task(
            "11.2",
            "default seeds",
            10,
            Part("minillm.engine.request", "derived_seed", engine_calls=True),
            SEED_CASES,
            SEED_MISTAKES,
            more_seeds,
        ),
        Task(
            "11.3",
            "the room of a share",
            15,
            Part(SHARES, "Shares", ("room",)),
            ROOM_CASES,
            ROOM_MISTAKES,
            random_lives,
        ),
        Task(
            "11.4",
            "what a share may keep",
            10,
            Part(SHARES, "Shares", ("trim",)),
            TRIM_CASES,
            TRIM_MISTAKES,
            random_lives,
        ),
        Task(
            "11.5",
            "whose cached blocks go",
            15,
            Part(SHARES, "Shares", ("reclaim",)),
            RECLAIM_CASES,
            RECLAIM_MISTAKES,
            random_lives,
        ),
        Task(
            "11.6",
            "who is held back",
            15,
            Part("minillm.engine.quota", "Quota", ("add", "_start", "released")),
            QUOTA_CASES,
            QUOTA_MISTAKES,
            more_quotas,
        ),
        Task(
            "11.7",
            "who is refused",
            10,
            Part(
                "minillm.engine.queue_counts",
                "require_place",
                (),
                ("_require", "_waiting_tokens"),
                engine_calls=True,
            ),
            QUEUE_CASES,
            QUEUE_MISTAKES,
            more_queues,
        ),
        Task(
            "11.8",
            "your parts in the running engine, in four worlds",
            10,
            None,
            (
                Case("W0: b alone", quiet_world),
                Case("W1: others have sent b's prompts before", warmed_world),
                Case("W2: a, c and none flood", busy_world(flood)),
                Case("W3: a aborts at random, and its listener raises", busy_world(storm)),
                Case(
                    "all tenants' steps, little memory",
                    served(
                        MIXED,
                        26,
                        anna=TenantLimits(guaranteed_blocks=8),
                        ben=TenantLimits(max_blocks=10),
                        others=TenantLimits(max_blocks=14),
                    ),
                ),
                Case("the work of a step in the flood", step_cost, "cost"),
            ),
            more=more_worlds,
        ),
    ),
)
