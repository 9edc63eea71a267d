"""The recorded runs: small ones that show one thing each, and incidents of known cause.

from minillm.labs.lab12_operating.runs import example
run = example("burst")      run.events, run.sent, run.seconds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from minillm.labs.lab12_operating.recorder import Recorded, Setup, User, record
from minillm.observe.events import Event

SOUND = Setup(num_blocks=220)


def steady(random: Random, count: int, per_second: float, start: float = 0.0) -> Iterator[User]:
    """`count` users, one after another at about even distances."""
    for i in range(count):
        at = start + (i + 0.5 * random.random()) / per_second
        yield User(at, random.randint(8, 32), random.randint(8, 32))


def calm(random: Random) -> Recorded:
    """A sound engine under its usual load: who waits, waits for a few steps."""
    return record(SOUND, tuple(steady(random, 30, random.uniform(18, 24))))


def short_of_memory(random: Random) -> Recorded:
    """The pool is too small for the usual load."""
    setup = replace(SOUND, num_blocks=random.randint(26, 36), headroom_tokens=4)
    return record(setup, tuple(steady(random, 30, random.uniform(22, 26))))


def few_places(random: Random) -> Recorded:
    """`max_num_seqs` is too small for the usual load."""
    setup = replace(SOUND, max_num_seqs=random.randint(2, 3))
    return record(setup, tuple(steady(random, 30, random.uniform(22, 26))))


def few_tokens(random: Random) -> Recorded:
    """`max_num_batched_tokens` is too small for the usual load."""
    setup = replace(SOUND, max_num_batched_tokens=random.randint(4, 6))
    return record(setup, tuple(steady(random, 30, random.uniform(22, 26))))


def burst(random: Random) -> Recorded:
    """A sound engine, and a crowd beside its usual load: it waits for blocks and for places."""
    crowd = steady(random, 30, 300, random.uniform(0.4, 0.8))
    return record(SOUND, (*steady(random, 24, random.uniform(18, 24)), *crowd))


def tight_burst(random: Random) -> Recorded:
    """A crowd, at an engine whose pool is large enough for the usual load only: it preempts."""
    setup = replace(SOUND, num_blocks=110, headroom_tokens=2)
    crowd = steady(random, 26, 260, random.uniform(0.4, 0.8))
    return record(setup, (*steady(random, 22, random.uniform(14, 16)), *crowd))


KINDS: dict[str, Callable[[Random], Recorded]] = {
    "healthy": calm,
    "memory": short_of_memory,
    "batching": few_places,
    "burst": burst,
    "few tokens": few_tokens,
    "tight burst": tight_burst,
}


def example(name: str) -> Recorded:
    """The run of the handout: "healthy", "memory", "batching" or "burst"."""
    return KINDS[name](Random(f"example {name}"))


def hidden(name: str, seed: int) -> Recorded:
    """Another run of that kind."""
    return KINDS[name](Random(f"{name} {seed}"))


def several() -> Recorded:
    """Three requests one after another; the last has one token."""
    return record(SOUND, (User(0.0), User(0.03, 20, 6), User(0.04, 9, 1)))


def samples() -> Recorded:
    """Requests with one, three and two samples, and a pool that preempts some of them."""
    users = (User(0.0, 10, 14), User(0.01, 14, 12, n=3), User(0.02, 6, 18, n=2), User(0.02, 16, 16))
    return record(Setup(num_blocks=22, headroom_tokens=0), users)


def leaving() -> Recorded:
    """One place: one request leaves while it waits, one after its first tokens."""
    users = (User(0.0, 10, 40, leaves=0.25), User(0.02, 12, 9, leaves=0.1), User(0.03, 8, 5))
    return record(replace(SOUND, max_num_seqs=1), users)


def preempting() -> Recorded:
    """A pool that preempts: a sequence is resumed later, and one finds blocks in the cache."""
    users = tuple(User(0.01 * i, 12, 16, story=i // 2) for i in range(6))
    return record(Setup(num_blocks=15, headroom_tokens=0), users)


def cut(run: Recorded, share: float = 0.5) -> tuple[Event, ...]:
    """The events of the last part of a run: some requests began before it."""
    return run.events[int(len(run.events) * share) :]
