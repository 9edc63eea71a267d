"""Task 11.7, who is refused: known mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minillm.config import EngineConfig
from minillm.config.tenants import limits_of
from minillm.engine.queue_counts import prompt_tokens
from minillm.engine.request import Request
from minillm.errors import QueueFull
from minillm.labs.grader.counts import LINES
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab11_tenants.queue_cases import QUEUE_LINES


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
