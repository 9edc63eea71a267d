"""Task 11.7, who is refused: cases of `require_place`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from minillm.config import EngineConfig
from minillm.config.tenants import TenantLimits
from minillm.engine.request import Request
from minillm.errors import QueueFull
from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Words
from minillm.labs.lab11_tenants.quota_stage import Asked, Limits

QUEUE_LINES = 30_000  # for 600 live requests
ANNA: Limits = {
    "anna": TenantLimits(guaranteed_blocks=4, guaranteed_tokens_per_step=4, max_queued_tokens=50),
    "ben": TenantLimits(max_queued_tokens=30),
    "cleo": TenantLimits(guaranteed_blocks=4),
    None: TenantLimits(guaranteed_blocks=4, max_queued_tokens=70),
}
RequirePlace = Callable[[Request, Iterable[Request], EngineConfig], Any]


def config_of(limits: Limits | None = ANNA, requests: int = 4, tokens: int = 100) -> EngineConfig:
    """A configuration with these limits of a queue."""
    return EngineConfig(tenant_limits=limits, max_queued_requests=requests, max_queued_tokens=tokens)


def asks(require: RequirePlace, live: Iterable[Asked], new: Asked, config: EngineConfig) -> Words:
    """Whether the new request may wait. `live` is passed on as something that can be walked over once."""
    requests = [each.made(number) for number, each in enumerate([*live, new])]
    try:
        found = require(requests[-1], iter(requests[:-1]), config)
    except QueueFull:
        return Words("QueueFull")
    return Words("may wait" if found is None else "returns a value instead of None")


def place_case(title: str, live: Iterable[Asked], *new: Asked, config: EngineConfig | None = None) -> Case:
    """Each new request alone, beside the same live ones."""
    listed, used = list(live), config or config_of()

    def run(require: RequirePlace) -> list[Words]:
        return [Words(f"{each.tenant!r} {each.prompt}: {asks(require, listed, each, used)}") for each in new]

    return Case(title, run)


def message_case(require: RequirePlace) -> list[bool]:
    """The error that ben gets beside nobody else's and beside much of others': equal, one line, no name."""
    own, much = (
        [Asked("ben", 29)],
        [Asked("cleo", 29), Asked("dan", 3, n=2), Asked("ben", 29), Asked("anna", 40)],
    )
    told = []
    for live in (own, much):
        requests = [each.made(number) for number, each in enumerate([*live, Asked("ben", 9)])]
        try:
            require(requests[-1], iter(requests[:-1]), config_of(requests=9))
        except QueueFull as error:
            told.append(f"{error.message} {error.hint}")
    names = ("anna", "cleo", "dan", "req-")
    return [
        len(told) == 2,
        len(set(told)) == 1,
        not any(name in text for name in names for text in told),
        not any("\n" in text for text in told),
    ]


def unchanged_case(require: RequirePlace) -> list[Any]:
    """A list of live requests, asked three times: nothing is added or removed."""
    live = [
        each.made(number) for number, each in enumerate([Asked("ben", 9), Asked("dan", 9, has_started=True)])
    ]
    new, before = Asked("ben", 9).made(9), list(live)
    for _ in range(3):
        require(new, live, config_of())
    return [live == before, len(new.sequences), new.admitted is None]


def work_case(require: RequirePlace) -> Counted:
    """600 live requests of 60 tenants."""
    config = config_of(requests=10_000, tokens=10**6)
    live = [Asked(f"t{i % 60}", 1).made(i) for i in range(600)]
    new = Asked("t7", 1).made(600)
    return within(QUEUE_LINES, counted_lines(lambda: require(new, live, config)), LINES)


def more_queues(random: Random) -> Iterable[Case]:
    """Random live requests, and one new one of each tenant."""
    names = ("anna", "ben", "cleo", "dan", "eve", None)
    for number in range(6):
        live = [
            Asked(random.choice(names), random.randrange(1, 40), has_started=random.random() < 0.3)
            for _ in range(random.randrange(9))
        ]
        new = [Asked(name, random.randrange(1, 40)) for name in names]
        yield place_case(
            f"random requests {number + 1}", live, *new, config=config_of(requests=random.choice((2, 4)))
        )


FOUR = [Asked("dan", 3), Asked("eve", 3), Asked(None, 3), Asked("ben", 3)]
QUEUE_CASES = (
    place_case("nobody waits", [], Asked("ben", 200), Asked("anna", 200), Asked("dan", 200), Asked(None, 3)),
    place_case(
        "the shared queue is full of requests",
        FOUR,
        Asked("dan", 1),
        Asked("fay", 1),
        Asked("ben", 1),
        Asked("anna", 1),
        Asked("cleo", 1),
    ),
    place_case("far too many wait", [*FOUR, *FOUR[:3]], Asked("dan", 1), Asked("ben", 1), Asked("anna", 1)),
    place_case("one tenant fills the shared queue", [Asked("dan", 3)] * 4, Asked("dan", 1), Asked("eve", 1)),
    place_case(
        "guaranteed tenants fill their own queues",
        [Asked("anna", 3)] * 4 + [Asked("cleo", 9)] * 3,
        Asked("anna", 1),
        Asked("cleo", 1),
        Asked("dan", 1),
        Asked("ben", 1),
    ),
    place_case(
        "all but one have started",
        [*FOUR[:3], Asked("ben", 25, has_started=True), *[Asked("dan", 60, has_started=True)] * 3],
        Asked("dan", 60),
        Asked("ben", 30),
        Asked("anna", 9),
    ),
    place_case(
        "tokens of the shared queue",
        [Asked("dan", 50), Asked("eve", 30)],
        Asked("fay", 20),
        Asked("fay", 21),
        Asked("anna", 90),
        Asked("ben", 30),
    ),
    place_case(
        "ben's own limit",
        [Asked("dan", 20), Asked("ben", 20)],
        Asked("ben", 10),
        Asked("ben", 11),
        Asked("dan", 40),
    ),
    place_case(
        "anna's own limit", [Asked("anna", 20), Asked("dan", 30)], Asked("anna", 30), Asked("anna", 31)
    ),
    place_case(
        "a limit for each tenant that is not named",
        [Asked("dan", 50), Asked("eve", 10)],
        Asked("dan", 20),
        Asked("dan", 21),
        Asked("eve", 40),
        Asked(None, 40),
    ),
    place_case(
        "a guaranteed tenant without a limit of its own",
        [Asked("cleo", 60), Asked("cleo", 30)],
        Asked("cleo", 10),
        Asked("cleo", 11),
        Asked("dan", 70),
    ),
    place_case(
        "samples", [Asked("ben", 9, n=3), Asked("dan", 20, n=3)], Asked("ben", 21, n=3), Asked("dan", 41, n=2)
    ),
    place_case(
        "no limits at all",
        [Asked("dan", 40), Asked("eve", 40)],
        Asked("dan", 20),
        Asked("eve", 21),
        Asked(None, 3),
        config=config_of(None),
    ),
    Case("what the error tells", message_case),
    Case("nothing is changed", unchanged_case, "aliasing"),
    Case("the work for 600 requests", work_case, "cost"),
)
