"""The requests that have not ended, by id. Any thread may add or abort one; the engine's step removes them.

    add_request --> submit --> live --> remove          under a lock; no foreign code runs while it is held
    abort_request -> abort ----^                        without a lock: a destructor may call it at any line

A request gets its place in the queue when it is submitted, and a number among the requests of its tenant. The
number decides its seed if the request gives none.

Its id is 128 random bits: whoever does not know it cannot guess it, and it does not tell how many there are.
An id is not a credential all the same. Where the caller is known, `find` treats another tenant's request as
one that does not exist.

The queue of a tenant with a guarantee is its own: no other tenant can fill it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable

from minillm.config import EngineConfig
from minillm.config.tenants import limits_of
from minillm.engine.keyed import keyed, tenant_label
from minillm.engine.request import Request
from minillm.errors import QueueFull, UnknownRequest
from minillm.observe.events import Events


class Registry:
    """The live requests. Every loop over them holds `lock`."""

    def __init__(self, config: EngineConfig, events: Events) -> None:
        self._config, self._events = config, events
        self.lock = threading.Lock()
        self.live: dict[str, Request] = {}
        self._aborted: deque[str] = deque()
        self._submitted = 0
        self._submitted_by: Counter[str | None] = Counter()  # by tenant

    def submit(self, request: Request) -> None:
        """Add a checked request.

        Raises:
            QueueFull: the limit of waiting requests or of waiting prompt tokens is reached.
        """
        with self.lock:
            self._require_room(request)
            self._submitted += 1  # first, so that no number is used twice, even after an interrupt
            self._submitted_by[request.tenant] += 1
            number = self._submitted_by[request.tenant] - 1
            request.submit(self._submitted - 1, number, self._config.seed)
            self.live[request.request_id] = request
            self._report(request)

    def find(self, request_id: str, tenant: str | None) -> Request:
        """The tenant's live request with this id. Takes no lock.

        Raises:
            UnknownRequest: there is none. The error is the same for an id that never was, one that has ended
                and one of another tenant.
        """
        request = self.live.get(request_id) if isinstance(request_id, str) else None
        if request is None or request.tenant != tenant:
            raise UnknownRequest("there is no such request", "it may have ended: read its last output")
        return request

    def abort(self, request_id: str) -> None:
        """End a request at the next step. Takes no lock."""
        self._aborted.append(request_id)

    def requests(self) -> list[Request]:
        """All live requests, in the order of submission."""
        with self.lock:
            return list(self.live.values())

    def select(self, request_ids: set[str]) -> list[Request]:
        """The live requests with these ids, in the order of submission."""
        with self.lock:
            return [request for request_id, request in self.live.items() if request_id in request_ids]

    def remove(self, request_id: str) -> None:
        """Remove a request that has ended."""
        with self.lock:
            self.live.pop(request_id, None)

    def aborted(self) -> list[str]:
        """The ids passed to `abort` so far. Call `forget_aborted` after handling them."""
        return [self._aborted[i] for i in range(len(self._aborted))]

    def forget_aborted(self, ids: Iterable[str]) -> None:
        """Remove `ids`, the result of `aborted`, after they have been handled."""
        for _ in ids:
            self._aborted.popleft()

    def _report(self, request: Request) -> None:
        if self._events.listeners:  # no digest is computed for nobody
            fields: dict[str, int | str] = {
                "prompt_tokens": _prompt_tokens(request),
                "n": len(request.sequences),
            }
            prompt = keyed(request.prompt_digest, request.tenant)
            fields |= {"prompt": prompt, "tenant": tenant_label(request.tenant)}
            self._events.emit("queue", request.request_id, at=request.arrival, **fields)

    def _require_room(self, request: Request) -> None:
        config, tenant = self._config, request.tenant
        waiting = [other for other in self.live.values() if other.admitted is None]
        own = [other for other in waiting if other.tenant == tenant]
        most = limits_of(config.tenant_limits, tenant).max_queued_tokens
        if most is not None:
            _require(own, request, len(own) + 1, most)
        in_line = (
            own
            if config.has_guarantee(tenant)
            else [w for w in waiting if not config.has_guarantee(w.tenant)]
        )
        _require(in_line, request, config.max_queued_requests, config.max_queued_tokens)


def count(requests: Iterable[Request]) -> tuple[int, int]:
    """The number of requests that wait to start, and of those that have started."""
    admitted = [request.sequences[0].admitted for request in requests]
    waiting = admitted.count(None)
    return waiting, len(admitted) - waiting


def _require(waiting: list[Request], request: Request, max_requests: int, max_tokens: int) -> None:
    """Require room for one more request beside those that wait. If none waits, any number of tokens fits."""
    if len(waiting) >= max_requests:
        raise QueueFull(f"the queue is full: it holds {max_requests} requests", "try again later")
    if waiting and sum(map(_prompt_tokens, waiting)) + _prompt_tokens(request) > max_tokens:
        raise QueueFull(f"the queue is full: it holds {max_tokens} prompt tokens", "try again later")


def _prompt_tokens(request: Request) -> int:
    return len(request.sequences[0].prompt_token_ids)
