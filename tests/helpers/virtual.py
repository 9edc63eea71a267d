"""A clock that moves only when a test says so, and an engine whose steps take scripted seconds."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from minillm.config import SamplingParams
from minillm.errors import QueueFull
from minillm.observe.events import Events


class VirtualClock:
    """`advance` calls what becomes due at its exact time, `late` seconds later if that is given."""

    def __init__(self, late: float = 0.0) -> None:
        self._now, self._late = 0.0, late
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(self._now, moment + self._late), next(self._order), action))

    def advance(self, seconds: float) -> None:
        until = self._now + seconds
        while self._due and self._due[0][0] <= until:
            self._call_next()
        self._now = until

    def wait(self) -> bool:
        if self._due:
            self._call_next()
            return True
        return False

    def _call_next(self) -> None:
        self._now, _, action = heapq.heappop(self._due)
        action()

    def __enter__(self) -> VirtualClock:
        return self

    def __exit__(self, *error: object) -> None: ...


class ScriptedEngine:
    """Gives every running request one token per step. Step i takes `seconds(i)`, from 0.

    `batch`: requests that run at once; the others wait. `queue`: requests that may wait. `fails`: called
    with the number of each step, to raise. `forgets`: numbers of requests that it loses.
    """

    def __init__(
        self,
        clock: VirtualClock,
        seconds: Callable[[int], float],
        batch: int = 64,
        queue: int = 1000,
        fails: Callable[[int], None] = lambda step: None,
        forgets: Sequence[int] = (),
    ) -> None:
        self.events = Events()
        self._clock, self._seconds, self._batch, self._most = clock, seconds, batch, queue
        self._fails, self._forgets, self._count = fails, forgets, 0
        self._waiting: list[Any] = []
        self._running: list[Any] = []
        self._aborted = set[str]()

    def add_request(self, prompt: Sequence[int], params: SamplingParams, tenant: str | None = None) -> str:
        if len(self._waiting) >= self._most:
            raise QueueFull("the queue is full")
        self._count += 1
        request_id = f"r{self._count - 1}"
        self.events.emit("queue", request_id, at=self._clock.now(), prompt_tokens=len(prompt), n=1)
        if self._count - 1 not in self._forgets:
            made = SimpleNamespace(request_id=request_id, prompt_token_ids=list(prompt), token_ids=[])
            made.max_tokens, made.finished, made.finish_reason, made.error = (
                params.max_tokens,
                False,
                None,
                None,
            )
            self._waiting.append(made)
        return request_id

    def abort_request(self, request_id: str) -> None:
        self._aborted.add(request_id)

    def has_unfinished_requests(self) -> bool:
        return bool(self._waiting or self._running)

    def step(self) -> list[Any]:
        events, now = self.events, self._clock.now()
        events.step += 1
        self._fails(events.step - 1)
        gone = [request for request in self._waiting + self._running if request.request_id in self._aborted]
        for request in gone:
            self._finish(request, "cancelled", now)
        while self._waiting and len(self._running) < self._batch:
            self._running.append(self._waiting.pop(0))
            events.emit("admit", self._running[-1].request_id, at=now, cached_tokens=0)
        stepped = list(self._running)
        self._clock.advance(self._seconds(events.step - 1))
        if stepped:
            ids = [(request.request_id, 0) for request in stepped]
            events.emit("decode_step", at=self._clock.now(), rows=len(ids))
            events.emit("sample", at=self._clock.now(), requests=ids)
        for request in stepped:
            request.token_ids.append(7)
            if len(request.token_ids) == request.max_tokens:
                self._finish(request, "length", self._clock.now())
        events.deliver()
        return gone + stepped

    def _finish(self, request: Any, reason: str, now: float) -> None:
        request.finished, request.finish_reason = True, reason
        for line in (self._waiting, self._running):
            if request in line:
                line.remove(request)
        self.events.emit("finish", request.request_id, at=now, index=0, reason=reason)
