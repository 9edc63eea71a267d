"""How a case of tasks 11.3 to 11.5 is made: shares in given states, or a random life of a pool.

    Holding(8, live=5, unused=2)     a share with 8 guaranteed blocks: 5 in use, 2 only in its cache

The cached blocks of share a are a1, a2, ... a1 is the oldest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake, Words
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import PrefixCache, Scope
from minillm.memory.shares import Share, Shares

BLOCK_SIZE = 4


@dataclass(frozen=True)
class Holding:
    """A share: its guarantee, and what it holds. `keeps`: `keeps_outside`."""

    guaranteed: int
    live: int = 0
    unused: int = 0
    planned: int = 0
    borrows: bool = True
    keeps: bool = False
    has_cache: bool = True


class Stage:
    """A division of the student's class, with shares a, b, c ... in given states."""

    def __init__(self, shares_class: Any, num_blocks: int, holdings: Iterable[Holding]) -> None:
        holdings = list(holdings)
        self.pool = BlockPool(num_blocks, BLOCK_SIZE)
        self.shares: Shares = shares_class(self.pool, num_blocks - sum(h.guaranteed for h in holdings))
        self._names: dict[int, str] = {}  # of cached blocks
        self._counts: dict[str, int] = {}
        self.members = [self._made(holding) for holding in holdings]

    def _made(self, holding: Holding) -> Share:
        share = self.shares.add(holding.guaranteed, holding.keeps)
        share.borrows = holding.borrows
        if holding.has_cache:
            share.cache = PrefixCache(cast(BlockPool, share))
        letter = _letter(len(self.shares.members) - 1)
        self.take(share, holding.live)
        self.leave(share, letter, self.take(share, holding.unused))
        share.planned = holding.planned
        return share

    def take(self, share: Share, count: int) -> list[int]:
        """Blocks that become live, without a question to the division."""
        ids = self.pool.allocate(count)
        share._allocated += count
        return ids

    def leave(self, share: Share, letter: str, ids: list[int]) -> None:
        """A sequence whose blocks are all in the cache ends."""
        if share.cache is None:
            share.free(ids)
            return
        for block_id in ids:
            number = self._counts[letter] = self._counts.get(letter, 0) + 1
            self._names[block_id] = f"{letter}{number}"
            share.cache.publish(Scope("kv", letter), None, [number], number.to_bytes(8, "big"), block_id)
        share.free(ids)
        share.cache.released(ids[::-1])  # the first one is the oldest

    def state(self) -> list[Words]:
        """Free blocks, and what each share has cached, the oldest first."""
        told = [Words(f"{self.pool.num_free} free")]
        for i, share in enumerate(self.members):
            unused = [self._names[block] for block in (share.cache._unused if share.cache else ())]
            told.append(Words(f"{_letter(i)} keeps {' '.join(unused) or 'nothing'}, {share.num_live} live"))
        return told

    def rooms(self) -> list[Any]:
        """The room of each share."""
        return [self.shares.room(share) for share in self.members]


def _letter(number: int) -> str:
    return chr(ord("a") + number)


def stage_case(title: str, num_blocks: int, act: Callable[[Stage], Any], *holdings: Holding) -> Case:
    """What `act` answers, and the state afterwards."""

    def run(shares_class: Any) -> list[Any]:
        stage = Stage(shares_class, num_blocks, holdings)
        return [act(stage), *stage.state()]

    return Case(title, run)


def turns_case(act: Callable[[Stage], Any], *holdings: Holding) -> Case:
    """Two pools of one class in turns; the second has its shares in reverse."""

    def run(shares_class: Any) -> list[Any]:
        stages = [Stage(shares_class, 60, order) for order in (holdings, holdings[::-1])]
        found = [act(stages[i]) for i in (0, 1, 0)]
        return [*found, *(words for stage in stages for words in stage.state())]

    return Case("two pools in turns", run, "aliasing")


# --- many shares --------------------------------------------------------------------------------------


def work_case(limit: int, title: str, act: Callable[[Stage], Any], holdings: list[Holding]) -> Case:
    """The lines of Python that run in `act`."""

    def run(shares_class: Any) -> Counted:
        stage = Stage(shares_class, sum(h.guaranteed + h.live + h.unused for h in holdings), holdings)
        return within(limit, counted_lines(lambda: act(stage)), LINES)

    return Case(title, run, "cost")


def wasteful(method: str, waste: Callable[[Shares], Any]) -> type[Shares]:
    """A division whose `method` first does needless work."""
    own = getattr(Shares, method)

    def run(shares: Shares, *arguments: Any) -> Any:
        waste(shares)
        return own(shares, *arguments)

    return type("Wasteful", (Shares,), {method: run})


def compares_all(shares: Shares) -> None:
    """Looks at every share once for each share."""
    for share in shares.members:
        max(shares.members, key=lambda other: (other.num_unused, other is share))


def looks_at_all(shares: Shares) -> None:
    """Looks at every share."""
    for share in shares.members:
        max(share.num_unused, share.num_live, share.guarantee_left)


def too_much(limit: int, what: str, rule: str, wrong: Any) -> Mistake:
    """The mistake of a method that needs more than `limit` lines."""
    return Mistake(f"more than {limit:,} {LINES} for {what}: {rule}", wrong)


# --- random lives -------------------------------------------------------------------------------------

Action = tuple[str, int, int]  # what, of which share, how many blocks


def _life_case(number: int, holdings: list[Holding], actions: list[Action]) -> Case:
    def run(shares_class: Any) -> list[Any]:
        stage, told = Stage(shares_class, 40, holdings), list[Any]()
        live: list[list[list[int]]] = [[] for _ in holdings]
        for what, which, count in actions:
            share = stage.members[which]
            if what == "allocate" and count <= share.available:
                share.make_room(count)
                live[which].append(share.allocate(count))
            elif what == "end" and live[which]:
                stage.leave(share, _letter(which), live[which].pop(count % len(live[which])))
                share.trim()
            told.append([Words(f"{_letter(which)}: {what} {count}"), stage.rooms(), *stage.state()])
        return told

    return Case(f"random requests {number}", run)


def _random_holdings(random: Random) -> list[Holding]:
    guaranteed = [random.choice((0, 0, 4, 6, 9)) for _ in range(3)]
    return [*(Holding(count) for count in guaranteed), Holding(random.choice((0, 5)), keeps=True)]


def random_lives(random: Random) -> Iterable[Case]:
    """Random lives of a pool of 40 blocks, and the room of random shares."""
    for number in range(3):
        holdings = _random_holdings(random)
        actions = [
            (random.choice(("allocate", "allocate", "end")), random.randrange(4), random.randrange(1, 7))
            for _ in range(60)
        ]
        yield _life_case(number + 1, holdings, actions)
