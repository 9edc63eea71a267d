"""Lets several callers share one engine: each output is delivered to the caller that waits for it.

    thread 1   generate   ticket [ r s ]  <--+
    thread 2   stream     ticket [ t ]    <--+-- deliver <-- step     a caller that needs an output
    thread 2   stream     ticket [ u ]    <--+                        runs the next step, for all

Tickets are held by weak references: if a caller has dropped its ticket, its outputs are dropped too.
Delivering an output twice is harmless, so an output that an interrupt left in the mailbox is delivered with
the outputs of the next step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from minillm.config import SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.outputs import RequestOutput
from minillm.engine.prompt import Prompt
from minillm.engine.recovery import for_callers
from minillm.errors import MinillmError


class Ticket:
    """The requests that one caller waits for, in the order of submission, and their newest outputs."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.outputs: dict[str, RequestOutput] = {}
        self.finished: set[str] = set()

    def put(self, output: RequestOutput) -> None:
        """Store the newest output of one of the ticket's requests."""
        self.outputs[output.request_id] = output
        if output.finished:
            self.finished.add(output.request_id)


class Delivery:
    """Submits requests to `engine` and runs its steps; any number of threads may call it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()  # held for a step: outputs are delivered before the next one
        self._tickets: WeakValueDictionary[str, Ticket] = WeakValueDictionary()
        self._mailbox: dict[str, RequestOutput] = {}

    def submit(self, ticket: Ticket, prompt: Prompt, params: SamplingParams, tenant: str | None) -> None:
        """Queue a request; its outputs will go to `ticket`.

        Raises:
            MinillmError: as `Engine.add_request`.
        """
        self._engine.require_own_process()  # before the lock: in a forked child it may never be released
        with self._lock:  # no step may end the request before its ticket is registered
            request_id = ""
            try:
                request_id = self._engine.add_request(prompt, params, tenant)
                self._tickets[request_id] = ticket
                ticket.ids.append(request_id)
            except BaseException:
                self._engine.abort_request(request_id)
                raise

    def drop(self, ticket: Ticket) -> None:
        """Abort the ticket's requests at the next step. Takes no lock: a destructor may call it."""
        for request_id in ticket.ids:
            self._engine.abort_request(request_id)

    def advance(self, is_enough: Callable[[], bool]) -> None:
        """Run one engine step, unless a step of another thread has already delivered enough.

        Raises:
            MinillmError: the engine has no unfinished requests, so another caller has received the output.
        """
        self._engine.require_own_process()
        with self._lock:
            self._deliver()  # outputs that an interrupt left in the mailbox
            if is_enough():
                return
            if not self._engine.has_unfinished_requests():
                raise MinillmError(
                    "another caller took the output of a request",
                    "use the LLM or step its engine, but not both at once",
                )
            self.step()

    def step(self) -> None:
        """Run one engine step and deliver its outputs to all tickets.

        Raises:
            Exception: what a part raised. If requests of several tenants lived, an error without its text and
                frames: the caller may be any of them (`recovery.py`).
        """
        self._engine.require_own_process()
        failure: Exception | None = None
        with self._lock:
            try:
                self._engine.step_into(self._mailbox)
            except Exception as error:
                failure = for_callers(error, self._engine.tenants_at_failure)
            finally:
                self._deliver()
        if failure is not None:  # outside of the handler, or it would be chained to the original
            raise failure

    def _deliver(self) -> None:
        for request_id, output in self._mailbox.items():
            ticket = self._tickets.get(request_id)
            if ticket is not None:
                ticket.put(output)
        self._mailbox.clear()
