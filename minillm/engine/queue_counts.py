"""Counts the requests that wait to start, and their prompt tokens, without looking at all of them.

    waiting    by tenant           anna  2 requests, 800 tokens     ben  1, 40     none  3, 120
               in line together    anna (has a guarantee)  2, 800   all others  4, 160

Every new request asks whether there is room in its line, so with 20,000 in the line nothing may walk along
it: `has_room` decides by the counts. Only to refuse, `require_place` looks at all and says why.

A change of several counters can be interrupted (Ctrl-C) in the middle. So a change begins and ends:

    begin      the request enters or leaves the live ones      add, remove: the counters, then the end

If a change has not ended, the next use counts everything anew (`refresh`), even if other changes have begun
and ended meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from minillm.config import EngineConfig
from minillm.config.tenants import limits_of
from minillm.engine.request import Request
from minillm.errors import QueueFull

Lengths = tuple[list[int], list[int]]
_OTHERS = object()  # the line of all tenants without a guarantee


class QueueCounts:
    """The live requests that have not started, those that have, and the sizes of the lines."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.waiting: dict[str, Request] = {}
        self.started: dict[str, Request] = {}
        self._requests: Counter[object] = Counter()  # that wait, by line and by tenant
        self._tokens: Counter[object] = Counter()
        self._is_changing, self._may_be_wrong = False, False

    def distrust(self) -> None:
        """Count everything anew at the next use: an interrupt or a failed step may have hidden a start."""
        self._may_be_wrong = True

    def begin(self) -> None:
        """A change begins: of the live requests, and then of the counts, which ends it."""
        if self._is_changing:  # the one before was interrupted
            self._may_be_wrong = True
        self._is_changing = True

    def refresh(self, live: Iterable[Request]) -> None:
        """Count everything anew, if the counts may be wrong. `live`: all live requests."""
        if not self._may_be_wrong and not self._is_changing:
            return
        self._may_be_wrong = True
        self.waiting, self.started = {}, {}
        self._requests.clear()
        self._tokens.clear()
        for request in live:
            if request.admitted is None:
                self._count(request, 1)
                self.waiting[request.request_id] = request
            else:
                self.started[request.request_id] = request
        self._is_changing, self._may_be_wrong = False, False

    def add(self, request: Request) -> None:
        """A request has entered the queue. Call `begin` before."""
        self.waiting[request.request_id] = request
        self._count(request, 1)
        self._is_changing = False

    def note_started(self, request_ids: Iterable[str]) -> None:
        """These requests are running; those of them that still count as waiting have started."""
        for request_id in request_ids:
            request = self.waiting.get(request_id)
            if request is not None and request.admitted is not None:
                self.begin()
                self._count(self.waiting.pop(request_id), -1)
                self.started[request_id] = request
                self._is_changing = False

    def remove(self, request: Request) -> None:
        """A request has ended. Call `begin` before."""
        if self.waiting.pop(request.request_id, None):
            self._count(request, -1)
        self.started.pop(request.request_id, None)
        self._is_changing = False

    def has_room(self, request: Request) -> bool:
        """Whether `require_place` lets the request in. It says which limit is reached if not."""
        config, tenant, tokens = self._config, request.tenant, prompt_tokens(request)
        most = limits_of(config.tenant_limits, tenant).max_queued_tokens
        if most is not None and self._is_over(("tenant", tenant), tokens, most):
            return False
        line = self._line(tenant)
        is_full = self._requests[line] >= config.max_queued_requests
        return not is_full and not self._is_over(line, tokens, config.max_queued_tokens)

    def _is_over(self, key: object, tokens: int, most: int) -> bool:
        return self._requests[key] > 0 and self._tokens[key] + tokens > most

    def _line(self, tenant: str | None) -> object:
        return ("line", tenant) if self._config.has_guarantee(tenant) else _OTHERS

    def _count(self, request: Request, change: int) -> None:
        for key in (self._line(request.tenant), ("tenant", request.tenant)):
            self._requests[key] += change
            self._tokens[key] += change * prompt_tokens(request)
            if not self._requests[key]:  # no entry stays of a tenant that has left
                del self._requests[key], self._tokens[key]


def require_place(request: Request, others: Iterable[Request], config: EngineConfig) -> None:
    """Require that one more request may wait beside the live requests `others`.

    Of these only those wait that no step has admitted (`admitted` is None). A tenant with a guarantee
    (`config.has_guarantee`) has a queue of its own; all others share one. A queue holds at most
    `config.max_queued_requests` requests and, with the new one, `config.max_queued_tokens` prompt tokens
    (`prompt_tokens`); if nobody waits in it, any number of tokens fits. Under a tenant's `max_queued_tokens`
    (`limits_of`) its own waiting requests are limited in the same way, whatever its queue is.

    Raises:
        QueueFull: a limit is reached. The message names the limit and nothing of other tenants.
    """
    own, shared = _waiting_tokens(request.tenant, others, config)
    tokens, most = prompt_tokens(request), limits_of(config.tenant_limits, request.tenant).max_queued_tokens
    if most is not None:
        _require(own, tokens, len(own) + 1, most)
    in_line = own if config.has_guarantee(request.tenant) else shared
    _require(in_line, tokens, config.max_queued_requests, config.max_queued_tokens)


def _waiting_tokens(tenant: str | None, others: Iterable[Request], config: EngineConfig) -> Lengths:
    """The prompt tokens of each waiting request: of the tenant's own, and of all in the shared queue.

    Only numbers: the frames of a `QueueFull` are its caller's, and must not hold requests of others.
    """
    waiting = [other for other in others if other.admitted is None]
    own = [prompt_tokens(other) for other in waiting if other.tenant == tenant]
    shared = [prompt_tokens(other) for other in waiting if not config.has_guarantee(other.tenant)]
    return own, shared


def _require(waiting: list[int], tokens: int, max_requests: int, max_tokens: int) -> None:
    """Require room for a prompt of `tokens` tokens beside those that wait. If none waits, any number fits."""
    if len(waiting) >= max_requests:
        raise QueueFull(f"the queue is full: it holds {max_requests} requests", "try again later")
    if waiting and sum(waiting) + tokens > max_tokens:
        raise QueueFull(f"the queue is full: it holds {max_tokens} prompt tokens", "try again later")


def prompt_tokens(request: Request) -> int:
    """The length of its prompt."""
    return len(request.sequences[0].prompt_token_ids)
