"""The load generator: sends the requests of a plan at their times, and records what became of each.

                  intended      started                  tokens              ended
    request          | -- lag --- | ------ ttft ----------- | - itl - | - itl - |
    latencies        | ------------------ from here -------------------------- >|

Every latency counts from the *intended* start. If the generator is late, or the engine is so slow that turns
pile up, the user who wanted an answer at that time has waited all the same. A generator that sends the next
request when it gets to it measures only the requests that a stall let through (coordinated omission: Tene,
"How NOT to Measure Latency", 2013).

One thread steps the engine. The clock's thread submits and cancels (`clock.py`). A turn is intended for the
moment when the step with the end of the turn before it has returned, and its gap; before that moment its user
cannot know the answer.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from minillm.bench.load.clock import Clock
from minillm.bench.load.plan import LoadRequest
from minillm.config import SamplingParams
from minillm.engine.outputs import RequestOutput
from minillm.errors import MinillmError
from minillm.observe.events import Event, Events

LEAD_SECONDS = 0.1  # to time 0 of the plan, in which all its starts are given to the clock
LOST, NOT_SENT = "Lost", "NotSent"  # failures without an error: the engine forgot it; the turn before failed


class Target(Protocol):
    """What is measured: the methods of `Engine` that a user calls."""

    events: Events

    def add_request(self, prompt: Sequence[int], params: SamplingParams, tenant: str | None, /) -> str: ...

    def abort_request(self, request_id: str, /) -> None: ...

    def step(self) -> list[RequestOutput]: ...

    def has_unfinished_requests(self) -> bool: ...


@dataclass
class Record:
    """What became of a request; times of the clock. The tokens' times are in the events, under its id.

    `intended` is None for a turn that was never due. `started`: just before it was submitted. `ended`: the
    step that ended it had returned. `failure`: the type of the error, or `LOST` or `NOT_SENT`.
    """

    request: LoadRequest
    intended: float | None = None
    started: float | None = None
    ended: float | None = None
    request_id: str = ""
    failure: str | None = None
    is_cancelled: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.ended is not None or self.failure is not None

    @property
    def lag(self) -> float | None:
        """Seconds by which the generator was late."""
        if self.started is None or self.intended is None:
            return None
        return self.started - self.intended


@dataclass(frozen=True)
class Run:
    """A run that is over. `start`: time 0 of the plan. `failed_steps`: types of errors that steps raised."""

    records: list[Record]
    events: list[Event]
    start: float
    end: float
    failed_steps: list[str]


class Generator:
    """Sends the requests of one plan to one engine, once. `on_step` is called after each step."""

    def __init__(
        self,
        engine: Target,
        clock: Clock,
        requests: Sequence[LoadRequest],
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._clock, self._on_step = engine, clock, on_step
        self._records = [Record(request) for request in requests]
        self._turns = defaultdict[int, list[int]](list)  # the turns that wait for each request
        for number, request in enumerate(requests):
            if request.after is not None:
                self._turns[request.after].append(number)
        self._history: dict[int, list[int]] = {}  # prompt and answer, of requests that turns wait for
        self._number: dict[str, int] = {}  # by request id
        self._failed_steps: list[str] = []
        self._open, self._open_at_failure = len(requests), -1
        # Held while a request is submitted, so that its output is never seen before its id is known.
        self._lock = threading.Lock()

    def run(self) -> Run:
        """Send everything, and step until every request is over. Ends all requests if it is interrupted."""
        with self._engine.events.record() as events:
            try:
                with self._clock:
                    start = self._clock.now() + LEAD_SECONDS
                    self._schedule(start)
                    self._drive()
                    end = self._clock.now()
            finally:
                for record in self._records:
                    if record.request_id and not record.is_over:
                        self._engine.abort_request(record.request_id)
        return Run(self._records, events, start, end, self._failed_steps)

    def _schedule(self, start: float) -> None:
        for number, record in enumerate(self._records):
            if record.request.after is None:
                self._intend(number, start + record.request.at)

    def _intend(self, number: int, moment: float) -> None:
        self._records[number].intended = moment
        self._clock.at(moment, partial(self._submit, number))

    # The clock's thread -----------------------------------------------------------------------

    def _submit(self, number: int) -> None:
        record = self._records[number]
        request, clock = record.request, self._clock
        before = [] if request.after is None else self._history[request.after]
        prompt = [*before, *request.tokens]
        params = SamplingParams(max_tokens=request.max_tokens, temperature=0, ignore_eos=True)
        with self._lock:
            record.started = clock.now()
            try:
                record.request_id = self._engine.add_request(prompt, params, request.tenant)
            except MinillmError as error:
                self._fail(number, type(error).__name__)
                return
            self._number[record.request_id] = number
        if request.cancel_after is not None and record.intended is not None:
            clock.at(record.intended + request.cancel_after, partial(self._cancel, record))

    def _cancel(self, record: Record) -> None:
        with self._lock:
            record.is_cancelled = not record.is_over
        if record.is_cancelled:
            self._engine.abort_request(record.request_id)

    # The stepping thread ----------------------------------------------------------------------

    def _drive(self) -> None:
        while self._open:
            if self._engine.has_unfinished_requests():
                self._see(self._step())
                self._on_step()
            elif not self._clock.wait():
                self._lose_the_rest()

    def _step(self) -> list[RequestOutput]:
        """One step. The requests of a step that fails end with its error, and the run goes on.

        A step that fails again before any request has ended would fail for ever: it is raised.
        """
        try:
            return self._engine.step()
        except Exception as error:
            if self._open == self._open_at_failure:
                raise
            self._open_at_failure = self._open
            self._failed_steps.append(type(error).__name__)
            return []

    def _see(self, outputs: Sequence[RequestOutput]) -> None:
        now = self._clock.now()
        with self._lock:
            for output in outputs:
                number = self._number.get(output.request_id)  # None: another caller's request
                if output.finished and number is not None:
                    self._end(number, output, now)

    def _end(self, number: int, output: RequestOutput, now: float) -> None:
        record = self._records[number]
        # A request may end by itself at the moment when it is cancelled.
        record.is_cancelled &= output.finish_reason == "cancelled"
        record.ended = now
        if output.error is not None:
            self._fail(number, type(output.error).__name__)
            return
        self._open -= 1
        for turn in self._turns[number]:
            self._history[number] = [*output.prompt_token_ids, *output.token_ids]
            self._intend(turn, now + self._records[turn].request.gap)

    def _fail(self, number: int, failure: str) -> None:
        """End a request with a failure, and all turns that would have followed: they are never sent."""
        failing = [number]
        while failing:
            self._records[failing[-1]].failure = failure
            self._open -= 1
            failing += self._turns[failing.pop()]
            failure = NOT_SENT

    def _lose_the_rest(self) -> None:
        with self._lock:
            for number, record in enumerate(self._records):
                if not record.is_over:
                    self._fail(number, LOST)
