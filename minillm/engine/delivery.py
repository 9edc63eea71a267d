"""From the steps of one engine to several callers: every output goes to the caller that waits for it.

    thread 1   generate   ticket [ req-0 req-1 ]  <--+
    thread 2   stream     ticket [ req-2 ]        <--+-- deliver <-- step     whoever needs an output asks for
    thread 2   stream     ticket [ req-3 ]        <--+                        the next step, for all of them

A ticket is known weakly: what nobody waits for any more is dropped. Delivering twice is harmless, so an
output that an interrupt left in the mailbox is delivered with the next step's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as List
from weakref import WeakValueDictionary

from minillm.config import SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.outputs import RequestOutput
from minillm.errors import MinillmError


class Ticket:
    """The requests that one caller waits for, in the order of submission, and their newest outputs."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.outputs: dict[str, RequestOutput] = {}
        self.finished: set[str] = set()

    def put(self, output: RequestOutput) -> None:
        """Take an output of one of its requests."""
        self.outputs[output.request_id] = output
        if output.finished:
            self.finished.add(output.request_id)


class Delivery:
    """Submits to `engine` and steps it, for any number of threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()  # held for a step: outputs are delivered before the next one
        self._tickets: WeakValueDictionary[str, Ticket] = WeakValueDictionary()
        self._mailbox: dict[str, RequestOutput] = {}

    def submit(
        self, ticket: Ticket, prompt: str | List[int], params: SamplingParams, tenant: str | None
    ) -> None:
        """Queue a request whose outputs `ticket` gets.

        Raises:
            MinillmError: what `Engine.add_request` raises.
        """
        self._engine.require_own_process()  # first: in a child the lock may be held for ever
        with self._lock:  # no step may end the request before its ticket is known
            request_id = ""
            try:
                request_id = self._engine.add_request(prompt, params, tenant)
                self._tickets[request_id] = ticket
                ticket.ids.append(request_id)
            except BaseException:
                self._engine.abort_request(request_id)
                raise

    def drop(self, ticket: Ticket) -> None:
        """Have the ticket's requests ended at the next step. Takes no lock: a destructor may call it."""
        for request_id in ticket.ids:
            self._engine.abort_request(request_id)

    def advance(self, is_enough: Callable[[], bool]) -> None:
        """One engine step, unless another thread's step has already brought enough.

        Raises:
            MinillmError: the engine has nothing to do, so what is waited for has ended unseen.
        """
        self._engine.require_own_process()
        with self._lock:
            self._deliver()  # what an interrupt has left
            if is_enough():
                return
            if not self._engine.has_unfinished_requests():
                raise MinillmError(
                    "a request ended unseen", "use the LLM, or step its engine, but not both at once"
                )
            self.step()

    def step(self) -> None:
        """One engine step; its outputs are delivered, whichever thread asked for the step."""
        self._engine.require_own_process()
        with self._lock:
            try:
                self._engine.step_into(self._mailbox)
            finally:
                self._deliver()

    def _deliver(self) -> None:
        for request_id, output in self._mailbox.items():
            ticket = self._tickets.get(request_id)
            if ticket is not None:
                ticket.put(output)
        self._mailbox.clear()
