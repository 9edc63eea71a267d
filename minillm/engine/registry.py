"""The requests that have not ended, by id. Any thread may add or abort one; the engine's step removes them.

    add_request --> submit --> live --> remove          under a lock; no foreign code runs while it is held
    abort_request -> abort ----^                        without a lock: a destructor may call it at any line

A request gets its place in the queue when it is submitted, and a number among the requests of its tenant. The
number decides its seed if the request gives none.

Its id is 128 random bits: whoever does not know it cannot guess it, and it does not tell how many there are.
An id is not a credential all the same. Where the caller is known, `find` treats another tenant's request as
one that does not exist.

The queue of a tenant with a guarantee is its own: no other tenant can fill it (`queue_counts.py`).

Adding a request, and a step, must not cost more when 20,000 wait. So nothing here loops over all requests in
either: a step gets the new ones, the aborted and the overdue, and asks for counts that are kept.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from minillm.config import EngineConfig
from minillm.engine.keyed import keyed, tenant_label
from minillm.engine.queue_counts import QueueCounts, prompt_tokens, require_place
from minillm.engine.request import Request
from minillm.engine.sequence import Sequence
from minillm.errors import UnknownRequest
from minillm.observe.events import Events

_KEPT = 64  # entries of ended requests that are not worth cleaning up


class Registry:
    """The live requests. Every loop over them holds `lock`."""

    def __init__(self, config: EngineConfig, events: Events) -> None:
        self._config, self._events = config, events
        self.lock = threading.Lock()
        self.live: dict[str, Request] = {}
        self._incoming: deque[Request] = deque()  # not yet given to the scheduler
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap
        self._aborted: deque[str] = deque()
        self._counts = QueueCounts(config)
        self._submitted = 0
        self._submitted_by: Counter[str | None] = Counter()  # by tenant

    def submit(self, request: Request) -> None:
        """Add a checked request.

        Raises:
            QueueFull: the limit of waiting requests or of waiting prompt tokens is reached.
        """
        with self.lock:
            self._counts.refresh(self.live.values())
            if not self._counts.has_room(request):
                require_place(request, self.live.values(), self._config)
            self._submitted += 1  # first, so that no number is used twice, even after an interrupt
            self._submitted_by[request.tenant] += 1
            number = self._submitted_by[request.tenant] - 1
            request.submit(self._submitted - 1, number, self._config.seed)
            self._counts.begin()
            self.live[request.request_id] = request
            self._incoming.append(request)
            if request.deadline is not None:
                heapq.heappush(self._deadlines, (request.deadline, self._submitted, request))
            self._counts.add(request)
            self._report(request)

    def find(self, request_id: str, tenant: str | None) -> Request:
        """The tenant's live request with this id. Takes no lock.

        Raises:
            UnknownRequest: there is none. The error is the same for an id that never was, one that has ended
                and one of another tenant.
        """
        if (found := self._own(request_id, tenant)) is None:
            raise UnknownRequest("there is no such request", "it may have ended: read its last output")
        return found

    def _own(self, request_id: str, tenant: str | None) -> Request | None:
        """The tenant's request, or None. No frame of `find`'s error holds a foreign one."""
        request = self.live.get(request_id) if isinstance(request_id, str) else None
        return request if request is not None and request.tenant == tenant else None

    def abort(self, request_id: str) -> None:
        """End a request at the next step. Takes no lock."""
        self._aborted.append(request_id)

    def requests(self) -> list[Request]:
        """All live requests, in the order of submission."""
        with self.lock:
            return list(self.live.values())

    def select(self, request_ids: set[str]) -> list[Request]:
        """The live requests with these ids, in the order of submission."""
        found = [self.live.get(request_id) for request_id in request_ids]
        return sorted((r for r in found if r is not None), key=lambda r: r.sequences[0].order)

    def remove(self, request_id: str) -> None:
        """Remove a request that has ended."""
        with self.lock:
            self._counts.begin()
            if request := self.live.pop(request_id, None):
                self._counts.remove(request)

    # Waiting and started requests -----------------------------------------------------------

    def count(self) -> tuple[int, int]:
        """The number of requests that wait to start, and of those that have started."""
        with self.lock:
            self._counts.refresh(self.live.values())
            return len(self._counts.waiting), len(self._counts.started)

    def started(self) -> list[Request]:
        """The live requests that have started; no other one has blocks."""
        with self.lock:
            self._counts.refresh(self.live.values())
            return list(self._counts.started.values())

    def note_started(self, sequences: Iterable[Sequence]) -> None:
        """Note which of the requests of these running sequences have started."""
        with self.lock:
            self._counts.note_started(sequence.request_id for sequence in sequences)

    def distrust_counts(self) -> None:
        """Count anew at the next use: a step has failed, and requests may have started in it."""
        self._counts.distrust()

    # What a step has to handle --------------------------------------------------------------

    def incoming(self) -> Iterator[Request]:
        """The live requests that no step has seen. Each is forgotten when the next one is asked for."""
        for _ in range(len(self._incoming)):
            request = self._incoming[0]
            if request.request_id in self.live and not request.is_scheduled:
                yield request
            self._incoming.popleft()

    def overdue(self, now: float) -> Iterator[Request]:
        """The live requests whose deadline has passed. Each is forgotten when the next one is asked for."""
        while self._deadlines and self._deadlines[0][0] < now:
            request = self._deadlines[0][-1]
            if request.request_id in self.live:
                yield request
            with self.lock:
                heapq.heappop(self._deadlines)
        if len(self._deadlines) > 2 * len(self.live) + _KEPT:  # most of them have ended
            with self.lock:
                self._deadlines = [entry for entry in self._deadlines if entry[-1].request_id in self.live]
                heapq.heapify(self._deadlines)

    def aborted(self) -> Iterator[Request]:
        """The live requests that `abort` has named. Each is forgotten when the next one is asked for."""
        for _ in range(len(self._aborted)):
            request = self.live.get(self._aborted[0])
            if request is not None:
                yield request
            self._aborted.popleft()

    def _report(self, request: Request) -> None:
        if self._events.listeners:  # no digest is computed for nobody
            prompt, tenant = keyed(request.prompt_digest, request.tenant), tenant_label(request.tenant)
            fields = {"prompt_tokens": prompt_tokens(request), "n": len(request.sequences)}
            self._events.emit(
                "queue", request.request_id, at=request.arrival, **fields, prompt=prompt, tenant=tenant
            )
