"""The requests that have not ended, by id. Any thread may add or abort one; the engine's step removes them.

    add_request --> submit --> live --> remove          under a lock; no foreign code runs while it is held
    abort_request -> abort ----^                        without a lock: a destructor may call it at any line

A request gets its number when it is submitted. The number decides its id and its place in the queue. It also
decides its seed if the request gives none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from minillm.config import EngineConfig
from minillm.engine.keyed import keyed
from minillm.engine.request import Request
from minillm.errors import QueueFull
from minillm.observe.events import Events


class Registry:
    """The live requests. Every loop over them holds `lock`."""

    def __init__(self, config: EngineConfig, events: Events) -> None:
        self._config, self._events = config, events
        self.lock = threading.Lock()
        self.live: dict[str, Request] = {}
        self._aborted: deque[str] = deque()
        self._submitted = 0

    def submit(self, request: Request) -> None:
        """Add a checked request.

        Raises:
            QueueFull: the limit of waiting requests or of waiting prompt tokens is reached.
        """
        num_tokens = len(request.sequences[0].prompt_token_ids)
        with self.lock:
            self._require_room(num_tokens)
            self._submitted += 1  # first, so that no id is used twice, even after an interrupt
            request.submit(self._submitted - 1, self._config.seed)
            self.live[request.request_id] = request
            self._report(request, num_tokens)

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

    def counts(self) -> tuple[int, int]:
        """The number of requests that wait to start, and of those that have started."""
        with self.lock:
            waiting = len(self._waiting())
            return waiting, len(self.live) - waiting

    def aborted(self) -> list[str]:
        """The ids passed to `abort` so far. Call `forget_aborted` after handling them."""
        return [self._aborted[i] for i in range(len(self._aborted))]

    def forget_aborted(self, ids: Iterable[str]) -> None:
        """Remove `ids`, the result of `aborted`, after they have been handled."""
        for _ in ids:
            self._aborted.popleft()

    def _report(self, request: Request, num_tokens: int) -> None:
        if self._events.listeners:  # no digest is computed for nobody
            fields = {"prompt_tokens": num_tokens, "n": len(request.sequences)}
            prompt = keyed(request.prompt_digest, request.sequences[0].tenant)
            self._events.emit("queue", request.request_id, at=request.arrival, **fields, prompt=prompt)

    def _waiting(self) -> list[Request]:
        return [request for request in self.live.values() if request.admitted is None]

    def _require_room(self, num_tokens: int) -> None:
        waiting, config = self._waiting(), self._config
        queued = sum(len(request.sequences[0].prompt_token_ids) for request in waiting)
        if len(waiting) >= config.max_queued_requests:
            raise QueueFull(f"the queue is full: {len(waiting)} requests are waiting", "try again later")
        if queued + num_tokens > config.max_queued_tokens and waiting:
            raise QueueFull(f"the queue is full: {queued} prompt tokens are waiting", "try again later")
