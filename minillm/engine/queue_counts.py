"""Counts the requests that wait to start, and their prompt tokens, without looking at all of them.

    waiting    by tenant           anna  2 requests, 800 tokens     ben  1, 40     none  3, 120
               in line together    anna (has a guarantee)  2, 800   all others  4, 160

Every new request asks whether there is room in its line, so with 20,000 in the line nothing may walk along
it. A change of several counters can be interrupted (Ctrl-C) in the middle. Then the mark `_is_right` is still
unset, and the next use counts everything anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from minillm.config import EngineConfig
from minillm.config.tenants import limits_of
from minillm.engine.request import Request
from minillm.errors import QueueFull

_OTHERS = object()  # the line of all tenants without a guarantee


class QueueCounts:
    """The live requests that have not started, those that have, and the sizes of the lines."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.waiting: dict[str, Request] = {}
        self.started: dict[str, Request] = {}
        self._requests: Counter[object] = Counter()  # that wait, by line and by tenant
        self._tokens: Counter[object] = Counter()
        self._is_right = True

    def distrust(self) -> None:
        """Count everything anew at the next use: an interrupt or a failed step may have hidden a start."""
        self._is_right = False

    def refresh(self, live: Iterable[Request]) -> None:
        """Count everything anew, if the counts may be wrong. `live`: all live requests."""
        if self._is_right:
            return
        self.waiting, self.started = {}, {}
        self._requests.clear()
        self._tokens.clear()
        for request in live:
            if request.admitted is None:
                self._count(request, 1)
                self.waiting[request.request_id] = request
            else:
                self.started[request.request_id] = request
        self._is_right = True

    def add(self, request: Request) -> None:
        """A request has entered the queue."""
        self._is_right = False
        self.waiting[request.request_id] = request
        self._count(request, 1)
        self._is_right = True

    def note_started(self, request_ids: Iterable[str]) -> None:
        """These requests are running; those of them that still count as waiting have started."""
        for request_id in request_ids:
            request = self.waiting.get(request_id)
            if request is not None and request.admitted is not None:
                self._is_right = False
                self._count(self.waiting.pop(request_id), -1)
                self.started[request_id] = request
                self._is_right = True

    def remove(self, request: Request) -> None:
        """A request has ended."""
        self._is_right = False
        if self.waiting.pop(request.request_id, None):
            self._count(request, -1)
        self.started.pop(request.request_id, None)
        self._is_right = True

    def require_room(self, request: Request) -> None:
        """Require room for one more request in its line, and among those of its tenant.

        Raises:
            QueueFull: there is none.
        """
        config, tenant, tokens = self._config, request.tenant, prompt_tokens(request)
        most = limits_of(config.tenant_limits, tenant).max_queued_tokens
        if most is not None:
            _require(self._requests["tenant", tenant], self._tokens["tenant", tenant] + tokens, None, most)
        line = self._line(tenant)
        most_requests, most = config.max_queued_requests, config.max_queued_tokens
        _require(self._requests[line], self._tokens[line] + tokens, most_requests, most)

    def _line(self, tenant: str | None) -> object:
        return ("line", tenant) if tenant in self._config.guaranteed else _OTHERS

    def _count(self, request: Request, change: int) -> None:
        for key in (self._line(request.tenant), ("tenant", request.tenant)):
            self._requests[key] += change
            self._tokens[key] += change * prompt_tokens(request)
            if not self._requests[key]:  # no entry stays of a tenant that has left
                del self._requests[key], self._tokens[key]


def prompt_tokens(request: Request) -> int:
    """The number of tokens of the request's prompt."""
    return len(request.sequences[0].prompt_token_ids)


def _require(waiting: int, tokens: int, max_requests: int | None, max_tokens: int) -> None:
    """`tokens`: those that wait and the new one's. If nobody waits, any number of tokens fits."""
    if max_requests is not None and waiting >= max_requests:
        raise QueueFull(f"the queue is full: it holds {max_requests} requests", "try again later")
    if waiting and tokens > max_tokens:
        raise QueueFull(f"the queue is full: it holds {max_tokens} prompt tokens", "try again later")
