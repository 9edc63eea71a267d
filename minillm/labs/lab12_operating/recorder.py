"""Record runs of the real engine: its events, with times of a virtual clock.

The engine runs without a model, so a run takes milliseconds. Its clock is replaced afterwards, so every run
gives the same trace: a step takes 8 ms, and 1 ms for each decoding row and for each two prompt tokens. All
times are multiples of 1/2048 s, so sums and differences of them are exact.

    arrivals:   intended starts        a client hands them over between two steps, so some start late
    engine:     scheduler, pool, prefix cache are the engine's own
    trace:      ids are r0, r1, ...; secrets of the process (keyed digests) are left out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.scheduler import Scheduler
from minillm.errors import MinillmError
from minillm.labs.grader.tiny_model import VOCAB_SIZE, tiny_llm
from minillm.observe.events import Event
from minillm.observe.goodput import Sent

TICK = 1 / 2048  # seconds
BLOCK_SIZE = 4
MAX_STEPS = 2_000
_AT_THE_END = ("sample", "finish", "step")  # these events have the time at which their step ends
_SECRET = ("prompt", "tenant", "answer", "phases")


@dataclass(frozen=True)
class User:
    """A request: its intended start in seconds, prompt and answer in tokens.

    `leaves`: it is cancelled so many seconds after its start.
    """

    start: float
    prompt: int = 12
    answer: int = 8
    n: int = 1
    story: int | None = None  # requests with the same story have a common beginning
    leaves: float | None = None


@dataclass(frozen=True)
class Recorded:
    """A run: its events, what the client noted of each user, and its seconds."""

    events: tuple[Event, ...]
    sent: tuple[Sent, ...]
    seconds: float


@dataclass(frozen=True)
class Setup:
    """An engine: blocks, and the limits of a step."""

    num_blocks: int = 160
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 48
    headroom_tokens: int = 32
    max_queued_requests: int = 1_000


@cache
def record(setup: Setup, users: tuple[User, ...]) -> Recorded:
    """Serve `users` until all have ended."""
    return _Run(setup, users).to_the_end()


class _Run:
    """The engine, the virtual clock and the trace so far."""

    def __init__(self, setup: Setup, users: Sequence[User]) -> None:
        self._engine = _engine(setup)
        in_ticks = [replace(user, start=round(user.start / TICK) * TICK) for user in users]
        self._users = sorted(enumerate(in_ticks), key=lambda user: user[1].start)
        self._now, self._new, self._trace = 0.0, list[Event](), list[Event]()
        self._names: dict[str, str] = {}
        self._sent: list[Sent] = []
        self._leaving: list[tuple[float, str]] = []
        self._engine.events.listeners.append(self._new.append)

    def to_the_end(self) -> Recorded:
        for _ in range(MAX_STEPS):
            if not self._engine.has_unfinished_requests():
                if not self._users:
                    break
                self._now = max(self._now, self._users[0][1].start)
            self._hand_over()
            self._engine.step()
            self._keep_step()
        return Recorded(tuple(self._trace), tuple(self._sent), self._now)

    def _hand_over(self) -> None:
        """Send what is due, and cancel what leaves."""
        while self._users and self._users[0][1].start <= self._now:
            number, user = self._users.pop(0)
            self._sent.append(Sent(user.start, *self._add(number, user)))
        for leaves, request_id in [leaving for leaving in self._leaving if leaving[0] <= self._now]:
            self._leaving.remove((leaves, request_id))
            self._engine.abort_request(request_id)

    def _add(self, number: int, user: User) -> tuple[str | None, bool]:
        try:
            request_id = self._engine.add_request(_prompt(user, number), _params(user, number))
        except MinillmError:
            self._keep(self._now)
            return None, True
        self._names[request_id] = f"r{number}"
        if user.leaves is not None:
            self._leaving.append((user.start + user.leaves, request_id))
        self._keep(self._now)
        return self._names[request_id], False

    def _keep_step(self) -> None:
        """Keep the events of a step, and let its time pass."""
        last = self._new[-1].data
        cost = 16 + last["prefill_tokens"] + 2 * last["decode_rows"]
        self._keep(self._now, self._now + cost * TICK)
        self._now += cost * TICK

    def _keep(self, start: float, end: float = 0.0) -> None:
        cancelled = {event.request_id for event in self._new if event.kind == "cancel"}
        for event in self._new:
            is_last = event.kind in _AT_THE_END and event.request_id not in cancelled
            self._trace.append(self._readable(event, end if is_last else start, end - start))
        self._new.clear()

    def _readable(self, event: Event, time: float, seconds: float) -> Event:
        data: dict[str, Any] = {name: value for name, value in event.data.items() if name not in _SECRET}
        if event.kind == "sample":
            data["requests"] = tuple((self._names[name], index) for name, index in data["requests"])
        if event.kind == "step":
            data["seconds"], data["held"] = seconds, MappingProxyType(data["held"])
        if event.kind == "admit":
            data["waited"] = time - self._submitted(event.request_id)
        name = self._names.get(event.request_id, "")
        return replace(event, time=time, request_id=name, data=MappingProxyType(data))

    def _submitted(self, request_id: str) -> float:
        name = self._names[request_id]
        return next(e.time for e in self._trace if e.kind == "queue" and e.request_id == name)


def _engine(setup: Setup) -> Engine:
    model = tiny_llm().engine.model
    block_bytes = BLOCK_SIZE * model.config.kv_bytes_per_token(torch.float32.itemsize)
    config = EngineConfig(
        kv_memory=setup.num_blocks * block_bytes,
        block_size=BLOCK_SIZE,
        prefill_chunk=16,
        max_num_seqs=setup.max_num_seqs,
        max_num_batched_tokens=setup.max_num_batched_tokens,
        max_queued_requests=setup.max_queued_requests,
    )
    engine = Engine(model, config, {"prefill_loop": _even_logits, "decode_loop": _even_logits})
    if isinstance(engine.scheduler, Scheduler):  # always: there are no tenant limits
        engine.scheduler.headroom_tokens = setup.headroom_tokens
    return engine


def _even_logits(runner: Any, rows: Sequence[Any]) -> Tensor:
    """A loop without a model."""
    return torch.zeros(len(rows), VOCAB_SIZE)


def _prompt(user: User, number: int) -> list[int]:
    story = number + 1 if user.story is None else user.story
    return [(37 * story + i * i + i // 7 * story) % 90 for i in range(user.prompt)]


def _params(user: User, number: int) -> SamplingParams:
    return SamplingParams(max_tokens=user.answer, n=user.n, temperature=0.0, seed=number, ignore_eos=True)
