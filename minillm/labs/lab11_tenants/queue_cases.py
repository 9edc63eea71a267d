"""Task 11.7, who is refused: cases and known mistakes of `require_place`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from minillm.config import EngineConfig
from minillm.config.tenants import TenantLimits, limits_of
from minillm.engine.registry import prompt_tokens
from minillm.engine.request import Request
from minillm.errors import QueueFull
from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake, Words
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


# --- known mistakes ---------------------------------------------------------------------------------


class Place:
    """The engine's `require_place`; subclasses replace one part of it."""

    def __call__(self, request: Request, others: Iterable[Request], config: EngineConfig) -> None:
        waiting = self.waiting(others)
        own = [other for other in waiting if other.tenant == request.tenant]
        most = self.most(request, config)
        if most is not None:
            self.check(self.limited(own, waiting), request, len(waiting) + 1, most)
        line = self.line(request, waiting, own, config)
        self.check(line, request, config.max_queued_requests, config.max_queued_tokens)

    def waiting(self, others: Iterable[Request]) -> list[Request]:
        return [other for other in others if other.admitted is None]

    def most(self, request: Request, config: EngineConfig) -> int | None:
        return limits_of(config.tenant_limits, request.tenant).max_queued_tokens

    def limited(self, own: list[Request], waiting: list[Request]) -> list[Request]:
        return own

    def line(
        self, request: Request, waiting: list[Request], own: list[Request], config: EngineConfig
    ) -> list[Request]:
        shared = [other for other in waiting if not config.has_guarantee(other.tenant)]
        return own if config.has_guarantee(request.tenant) else shared

    def tokens(self, request: Request) -> int:
        return prompt_tokens(request)

    def check(self, waiting: list[Request], request: Request, requests: int, tokens: int) -> None:
        if len(waiting) >= requests:
            raise QueueFull("too many requests wait", "try again later")
        if waiting and sum(map(self.tokens, waiting)) + self.tokens(request) > tokens:
            raise QueueFull("too many prompt tokens wait", "try again later")


class OneQueue(Place):
    """All tenants share one queue."""

    def line(
        self, request: Request, waiting: list[Request], own: list[Request], config: EngineConfig
    ) -> list[Request]:
        return waiting


class OwnQueues(Place):
    """Each tenant has a queue of its own."""

    def line(
        self, request: Request, waiting: list[Request], own: list[Request], config: EngineConfig
    ) -> list[Request]:
        return own


class GuaranteedInShared(Place):
    """Requests of guaranteed tenants fill the shared queue too."""

    def line(
        self, request: Request, waiting: list[Request], own: list[Request], config: EngineConfig
    ) -> list[Request]:
        return own if config.has_guarantee(request.tenant) else waiting


class SharedByGuaranteed(Place):
    """Tenants with a guarantee share one queue."""

    def line(
        self, request: Request, waiting: list[Request], own: list[Request], config: EngineConfig
    ) -> list[Request]:
        is_guaranteed = config.has_guarantee(request.tenant)
        return [other for other in waiting if config.has_guarantee(other.tenant) == is_guaranteed]


class NamedQueues(Place):
    """Each named tenant has a queue of its own, with or without a guarantee."""

    def line(
        self, request: Request, waiting: list[Request], own: list[Request], config: EngineConfig
    ) -> list[Request]:
        named = config.tenant_limits or {}
        if request.tenant is not None and request.tenant in named:
            return own
        return [other for other in waiting if other.tenant is None or other.tenant not in named]


class TokensOfAll(Place):
    """A tenant's limit counts everybody's tokens."""

    def limited(self, own: list[Request], waiting: list[Request]) -> list[Request]:
        return waiting


class NoTenantLimit(Place):
    """`max_queued_tokens` of a tenant is ignored."""

    def most(self, request: Request, config: EngineConfig) -> int | None:
        return None


class OnlyNamedLimit(Place):
    """The limit of tenants that are not named is not found."""

    def most(self, request: Request, config: EngineConfig) -> int | None:
        limit = (config.tenant_limits or {}).get(request.tenant)
        return limit.max_queued_tokens if limit else None


class CountsStarted(Place):
    """Requests that have started count."""

    def waiting(self, others: Iterable[Request]) -> list[Request]:
        return list(others)


class WithoutNew(Place):
    """The new request's tokens do not count."""

    def check(self, waiting: list[Request], request: Request, requests: int, tokens: int) -> None:
        if len(waiting) >= requests or sum(map(self.tokens, waiting)) > tokens:
            raise QueueFull("the queue is full")


class Alone(Place):
    """A long prompt is refused although nobody waits."""

    def check(self, waiting: list[Request], request: Request, requests: int, tokens: int) -> None:
        if len(waiting) >= requests or sum(map(self.tokens, [*waiting, request])) > tokens:
            raise QueueFull("the queue is full")


class OneRequestMore(Place):
    """One request too many."""

    def check(self, waiting: list[Request], request: Request, requests: int, tokens: int) -> None:
        super().check(waiting, request, requests + 1, tokens)


class OneTokenLess(Place):
    """The last token is refused."""

    def check(self, waiting: list[Request], request: Request, requests: int, tokens: int) -> None:
        super().check(waiting, request, requests, tokens - 1)


class TokensOnly(Place):
    """The number of requests is not limited."""

    def check(self, waiting: list[Request], request: Request, requests: int, tokens: int) -> None:
        super().check(waiting, request, len(waiting) + 1, tokens)


class RequestsOnly(Place):
    """The tokens in a queue are not limited, only those of a tenant."""

    def line(
        self, request: Request, waiting: list[Request], own: list[Request], config: EngineConfig
    ) -> list[Request]:
        line = super().line(request, waiting, own, config)
        if len(line) >= config.max_queued_requests:
            raise QueueFull("the queue is full")
        return []


class PerSample(Place):
    """A prompt counts once for each sample."""

    def tokens(self, request: Request) -> int:
        return prompt_tokens(request) * len(request.sequences)


class WalksTwice(Place):
    """Walks over the live requests twice."""

    def __call__(self, request: Request, others: Iterable[Request], config: EngineConfig) -> None:
        most = self.most(request, config)
        own = [other for other in self.waiting(others) if other.tenant == request.tenant]
        if most is not None:
            self.check(own, request, len(own) + 1, most)
        line = self.line(request, self.waiting(others), own, config)
        self.check(line, request, config.max_queued_requests, config.max_queued_tokens)


class AnotherError(Place):
    """A plain error of Python."""

    def check(self, *arguments: Any) -> None:
        try:
            super().check(*arguments)
        except QueueFull:
            raise RuntimeError("the queue is full") from None


class TellsTheRest(Place):
    """The message tells how much waits."""

    def __call__(self, request: Request, others: Iterable[Request], config: EngineConfig) -> None:
        listed = list(others)
        try:
            super().__call__(request, listed, config)
        except QueueFull:
            raise QueueFull(f"the queue is full: {len(listed)} requests wait", "try again later") from None


class Answers(Place):
    """Answers False instead of raising."""

    def __call__(self, request: Request, others: Iterable[Request], config: EngineConfig) -> Any:
        try:
            super().__call__(request, others, config)
        except QueueFull:
            return False
        return True


class ComparesAll(Place):
    """Compares every request with all others."""

    def waiting(self, others: Iterable[Request]) -> list[Request]:
        listed = super().waiting(others)
        for one in listed:
            [other for other in listed if other is one]
        return listed


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
QUEUE_MISTAKES = (
    Mistake("all tenants share one queue: a flood fills it, and a guaranteed tenant is refused", OneQueue()),
    Mistake("each tenant has a queue of its own: those without a guarantee share one", OwnQueues()),
    Mistake(
        "requests of guaranteed tenants fill the shared queue: they wait in their own", GuaranteedInShared()
    ),
    Mistake("guaranteed tenants share a queue: each has its own", SharedByGuaranteed()),
    Mistake("being named gives a queue of one's own: a guarantee does", NamedQueues()),
    Mistake("a tenant's `max_queued_tokens` counts the tokens of others: a flood refuses it", TokensOfAll()),
    Mistake("a tenant's `max_queued_tokens` is ignored", NoTenantLimit()),
    Mistake("a tenant that is not named has no limit: `limits_of` finds that of None", OnlyNamedLimit()),
    Mistake("requests that have started count: they do not wait any more", CountsStarted()),
    Mistake("the tokens of the new request do not count", WithoutNew()),
    Mistake("a long prompt is refused although nobody waits: it could never be sent", Alone()),
    Mistake("one request too many may wait", OneRequestMore()),
    Mistake("the last token is refused: exactly the limit is allowed", OneTokenLess()),
    Mistake("the number of waiting requests is not limited", TokensOnly()),
    Mistake("the prompt tokens of a queue are not limited", RequestsOnly()),
    Mistake("a prompt counts once for each sample: it waits once", PerSample()),
    Mistake(
        "`others` is walked over twice: it may be something that can be read once, make a list", WalksTwice()
    ),
    Mistake("the error is not a `QueueFull`: callers wait for this type to try again", AnotherError()),
    Mistake("the message tells how much others send: name the limit only", TellsTheRest()),
    Mistake("a full queue must raise `QueueFull`, not return a value", Answers()),
    Mistake(
        f"more than {QUEUE_LINES:,} {LINES} for 600 requests: look at each request a few times", ComparesAll()
    ),
)
