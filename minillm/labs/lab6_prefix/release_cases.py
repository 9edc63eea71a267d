"""Task 6.6, unused blocks: cases and known mistakes of `released`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import OTHER, SECOND, STORY, CacheUser, walk_case
from minillm.memory.prefix_cache import PrefixCache


def release_case(title: str, use: Callable[[CacheUser], None]) -> Case:
    """The state after `use`, and the blocks that are found after each eviction of one block."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class)
        use(user)
        seen = [user.state()]
        for _ in range(user.cache.num_unused):
            user.cache.evict(1)
            seen.append([user.find(STORY), user.find([OTHER, SECOND]), user.state()])
        return seen

    return Case(title, run)


def one_leaves(user: CacheUser) -> None:
    """A sequence of three blocks ends."""
    user.leave(user.write(STORY))


def two_leave(user: CacheUser) -> None:
    """Two sequences end, the second first."""
    first, second = user.write([OTHER, SECOND]), user.write(STORY)
    user.leave(second)
    user.leave(first)


def one_of_two_leaves(user: CacheUser) -> None:
    """A sequence ends; another one still uses its first two blocks."""
    blocks = user.write(STORY)
    user.cache.acquire(blocks[:2])
    user.leave(blocks)


def both_leave(user: CacheUser) -> None:
    """Two sequences with the same two blocks end."""
    blocks = user.write(STORY)
    user.cache.acquire(blocks[:2])
    user.leave(blocks)
    user.leave(blocks[:2])


def one_of_three_leaves(user: CacheUser) -> None:
    """A sequence ends; two others still use its first block."""
    blocks = user.write(STORY)
    user.cache.acquire(blocks[:1])
    user.cache.acquire(blocks[:1])
    user.leave(blocks)


def used_again(user: CacheUser) -> None:
    """Two sequences end; a third one uses the blocks of the first again, and ends."""
    user.leave(user.write(STORY))
    user.leave(user.write([OTHER, SECOND]))
    user.leave(user.enter(STORY))


def leaves_unpublished(user: CacheUser) -> None:
    """A sequence ends; its last block is partly full."""
    blocks = user.write(STORY)
    user.free([*(block.block_id for block in blocks), *user.pool.allocate(1)])


def list_case(cache_class: Any) -> list[Any]:
    """The caller's list of ids is not changed; an empty list and a tuple; a call for each of two caches."""
    user, other = CacheUser(cache_class), CacheUser(cache_class)
    ids = [block.block_id for block in user.write(STORY)]
    given = list(ids)
    other.write(STORY)
    user.pool.free(ids)
    user.cache.released(given)
    user.cache.released([])
    other.cache.released(())
    return [given == ids, user.state(), other.state()]


# --- known mistakes ---------------------------------------------------------------------------------


class Releases(PrefixCache):
    """The engine's `released`; subclasses change one part of it."""

    def _order(self, block_ids: Sequence[int]) -> Iterable[int]:
        return list(block_ids)[::-1]

    def _is_unused(self, block_id: int) -> bool:
        return block_id in self._by_block and self._pool.ref_count(block_id) == 1

    def _store(self, block_id: int) -> None:
        self._unused[block_id] = self._by_block[block_id]

    def released(self, block_ids: Sequence[int]) -> None:
        for block_id in self._order(block_ids):
            if self._is_unused(block_id):
                self._store(block_id)


class Forward(Releases):
    """The first block of a sequence is evicted first."""

    def _order(self, block_ids: Sequence[int]) -> Iterable[int]:
        return block_ids


class ByNumber(Releases):
    """In the order of the block ids."""

    def _order(self, block_ids: Sequence[int]) -> Iterable[int]:
        return sorted(block_ids)


class ByNumberDown(Releases):
    """In the order of the block ids, the largest first."""

    def _order(self, block_ids: Sequence[int]) -> Iterable[int]:
        return sorted(block_ids, reverse=True)


class Reverses(Releases):
    """Reverses the caller's list."""

    def _order(self, block_ids: Sequence[int]) -> Iterable[int]:
        if isinstance(block_ids, list):
            block_ids.reverse()
            return block_ids
        return block_ids[::-1]


class Used(Releases):
    """A block becomes unused when any owner frees it."""

    def _is_unused(self, block_id: int) -> bool:
        return block_id in self._by_block


class Unknown(Releases):
    """Expects every block to be in the cache."""

    def _is_unused(self, block_id: int) -> bool:
        return self._pool.ref_count(block_id) <= 1


class Never(Releases):
    """No block ever becomes unused."""

    def _is_unused(self, block_id: int) -> bool:
        return False


class OnlyOwnedTwice(Releases):
    """Asks for two owners."""

    def _is_unused(self, block_id: int) -> bool:
        return block_id in self._by_block and self._pool.ref_count(block_id) <= 2


class NewestFirst(Releases):
    """Puts the block at the side from which blocks are evicted."""

    def _store(self, block_id: int) -> None:
        super()._store(block_id)
        self._unused.move_to_end(block_id, last=False)


class FreesThem(Releases):
    """Frees the block, which the cache still owns."""

    def _store(self, block_id: int) -> None:
        super()._store(block_id)
        self._pool.free([block_id])


class Forgets(Releases):
    """Takes the block out of the cache."""

    def _store(self, block_id: int) -> None:
        block = self._by_block.pop(block_id)
        self._index[block.digest].remove(block)
        self._pool.free([block_id])


class LastOnly(Releases):
    """Only the last block of the list."""

    def _order(self, block_ids: Sequence[int]) -> Iterable[int]:
        return block_ids[-1:]


class WalksOverAll(Releases):
    """Looks at every block of the cache."""

    def released(self, block_ids: Sequence[int]) -> None:
        for block_id in self._order(block_ids):
            if block_id in list(self._by_block) and self._is_unused(block_id):
                self._store(block_id)


RELEASE_CASES = (
    release_case("a sequence of three blocks ends", one_leaves),
    release_case("two sequences end, the second first", two_leave),
    release_case("a sequence ends, another one still uses its blocks", one_of_two_leaves),
    release_case("a sequence ends, two others still use its first block", one_of_three_leaves),
    release_case("two sequences with the same blocks end", both_leave),
    release_case("blocks are used again, and become unused again", used_again),
    release_case("a sequence with a partly full block ends", leaves_unpublished),
    Case("the list of ids, an empty one, two caches", list_case, "aliasing"),
    walk_case(lambda user, blocks: user.leave(blocks)),
)
RELEASE_MISTAKES = (
    Mistake("parents are evicted before children, which can then never be found: last block first", Forward),
    Mistake("the order is that of the block ids: the last block of the sequence comes first", ByNumber),
    Mistake("the order is that of the block ids: the last block of the sequence comes first", ByNumberDown),
    Mistake("the caller's list of ids is reversed: it is not yours to change", Reverses),
    Mistake(
        "a block becomes unused while a sequence still uses it: check that the cache is its only owner", Used
    ),
    Mistake("not every block is in the cache: the last one is often partly full", Unknown),
    Mistake("no block becomes unused, so no block can be evicted: the pool becomes empty", Never),
    Mistake("a block with two owners is not unused: one of them is a sequence", OnlyOwnedTwice),
    Mistake("the block is evicted next: it was used last, so it belongs at the end", NewestFirst),
    Mistake("the block is freed: it is kept, and can be found, until `evict` needs its memory", FreesThem),
    Mistake("the block leaves the cache at once: it is kept until `evict` needs its memory", Forgets),
    Mistake("only one block of the list becomes unused", LastOnly),
    Mistake("every block of the cache is looked at: only those of the list can become unused", WalksOverAll),
)
