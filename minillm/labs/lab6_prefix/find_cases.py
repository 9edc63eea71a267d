"""Task 6.3, the proof of a hit: cases and known mistakes of `_find`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import (
    FIRST,
    HOME,
    OTHER,
    SECOND,
    STORY,
    CacheUser,
    Chain,
    hash_name,
    walk_case,
)
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope


def find_case(
    title: str, *wanted: tuple[Scope, Chain], written: Scope = HOME, is_constant: bool = True
) -> Case:
    """Write STORY and another chain; show the blocks found for each wanted chain."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class, is_constant=is_constant)
        user.write([OTHER, SECOND], written)
        user.write(STORY, written)
        return [user.find(chain, scope) for scope, chain in wanted]

    return Case(f"{title}, {hash_name(is_constant)}", run)


def count_case(title: str, *wanted: Chain, is_constant: bool) -> Case:
    """The false matches of each search. A hit is in a list of its own, so their order does not matter."""

    def run(cache_class: Any) -> list[int]:
        user, counts = CacheUser(cache_class, is_constant=is_constant), list[int]()
        user.write([OTHER, SECOND])
        user.write(STORY)
        for chain in wanted:
            before = user.cache.false_matches
            user.find(chain)
            counts.append(user.cache.false_matches - before)
        return counts

    return Case(f"{title}, {hash_name(is_constant)}", run)


def again_case(cache_class: Any) -> list[Any]:
    """Search, evict, search; then the block's memory is used for another text."""
    user = CacheUser(cache_class, num_blocks=3, is_constant=True)
    user.leave(user.write(STORY))
    seen = [user.find(STORY), user.find(STORY)]
    user.cache.evict(2)
    seen.append(user.find(STORY))
    user.write([OTHER, OTHER])
    return [*seen, user.find(STORY), user.find([OTHER, OTHER]), user.find([SECOND])]


def missed_case(cache_class: Any) -> list[int]:
    """The digests in the index before and after searches that find nothing."""
    user = CacheUser(cache_class)
    user.write(STORY)
    sizes = [len(user.cache._index)]
    for chain in ([OTHER, SECOND], [FIRST, OTHER]):
        user.find(chain)
        sizes.append(len(user.cache._index))
    return sizes


# --- known mistakes ---------------------------------------------------------------------------------

Same = Callable[[CachedBlock, Scope, CachedBlock | None, tuple[int, ...]], bool]


class Finds(PrefixCache):
    """The engine's `_find`; subclasses change one comparison."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return block.scope == scope and block.parent is parent and block.token_ids == ids

    def _candidates(self, digest: bytes) -> list[CachedBlock]:
        return list(self._index.get(digest, ()))

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        for block in self._candidates(digest):
            if self._same(block, scope, parent, token_ids):
                return block
            self.false_matches += 1
        return None


def comparing(same: Same) -> type[Finds]:
    """A cache that compares in another way."""

    class Compares(Finds):
        def _same(
            self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
        ) -> bool:
            return same(block, scope, parent, ids)

    return Compares


def same_digest(left: CachedBlock | None, right: CachedBlock | None) -> bool:
    """Whether two parents have one digest."""
    before, after = (block.digest if block else None for block in (left, right))
    return before == after


class FirstOnly(Finds):
    """Stops at the first candidate."""

    def _candidates(self, digest: bytes) -> list[CachedBlock]:
        return super()._candidates(digest)[:1]


class EveryBlock(Finds):
    """Searches all blocks of the cache."""

    def _candidates(self, digest: bytes) -> list[CachedBlock]:
        return [block for block in self._by_block.values() if block.digest == digest]


class CountsNothing(Finds):
    """Finds the right block, but does not count false matches."""

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        before = self.false_matches
        found = super()._find(digest, scope, parent, token_ids)
        self.false_matches = before
        return found


class CountsSearches(CountsNothing):
    """Counts one false match for a search that finds nothing."""

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        found = super()._find(digest, scope, parent, token_ids)
        self.false_matches += found is None and digest in self._index
        return found


class CountsAll(CountsNothing):
    """Counts the right block too."""

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        found = super()._find(digest, scope, parent, token_ids)
        self.false_matches += len(self._index.get(digest, ()))
        return found


class Unsafe(Finds):
    """Expects every digest to be in the index."""

    def _candidates(self, digest: bytes) -> list[CachedBlock]:
        return self._index[digest]


class Remembers(Finds):
    """Remembers what was found, also after it was evicted."""

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        known: dict[object, CachedBlock] = vars(self).setdefault("known", {})
        key = (digest, scope, parent, token_ids)
        if key not in known:
            found = super()._find(digest, scope, parent, token_ids)
            if found is None:
                return None
            known[key] = found
        return known[key]


ALICE, BOB = Scope("model", "alice"), Scope("model", "bob")
FIND_CASES = (
    find_case("the same chains", (HOME, STORY), (HOME, (OTHER, SECOND)), is_constant=False),
    find_case("the same chains", (HOME, STORY), (HOME, (OTHER, SECOND))),
    find_case(
        "other token ids", (HOME, [(1, 2, 3, 5)]), (HOME, [FIRST, (5, 6, 7, 9)]), (HOME, [FIRST[::-1]])
    ),
    find_case("another tenant", (BOB, STORY), (HOME, STORY), (ALICE, STORY), written=ALICE),
    find_case("another model", (Scope("other"), STORY)),
    find_case("other conditioning", (Scope("model", None, "image"), STORY)),
    find_case("a tenant moved to conditioning", (Scope("m", None, "x"), STORY), written=Scope("m", "x", "")),
    find_case(
        "known blocks after another parent",
        (HOME, [SECOND]),
        (HOME, [FIRST, OTHER]),
        (HOME, [OTHER, SECOND, OTHER]),
    ),
    count_case("false matches of keys that are not there", [(7, 7, 7, 7)], [(8,) * 4], is_constant=True),
    count_case("false matches of keys that are there", STORY, [OTHER, SECOND], is_constant=False),
    Case("a block is evicted between two searches", again_case, "aliasing"),
    Case("what searches without a hit leave behind", missed_case, "cost"),
    walk_case(lambda user, blocks: user.find(STORY)),
)
FIND_MISTAKES = (
    Mistake(
        "the hash is trusted: any block with the digest is a hit. Compare every field",
        comparing(lambda block, scope, parent, ids: True),
    ),
    Mistake(
        "the scope is not compared, so one tenant or model finds the blocks of another",
        comparing(lambda block, scope, parent, ids: block.parent is parent and block.token_ids == ids),
    ),
    Mistake(
        "the tenant is not compared: compare the whole scope",
        comparing(
            lambda block, scope, parent, ids: (
                block.scope[::2] == scope[::2] and block.parent is parent and block.token_ids == ids
            )
        ),
    ),
    Mistake(
        "the conditioning is not compared: compare the whole scope",
        comparing(
            lambda block, scope, parent, ids: (
                block.scope[:2] == scope[:2] and block.parent is parent and block.token_ids == ids
            )
        ),
    ),
    Mistake(
        "of the scope only the envelope is compared: compare the whole scope",
        comparing(
            lambda block, scope, parent, ids: (
                block.scope[0] == scope[0] and block.parent is parent and block.token_ids == ids
            )
        ),
    ),
    Mistake(
        "the parent is not compared: the same tokens after another beginning are another block",
        comparing(lambda block, scope, parent, ids: block.scope == scope and block.token_ids == ids),
    ),
    Mistake(
        "the parent is compared by its digest, so the hash is trusted: compare its identity (`is`)",
        comparing(
            lambda block, scope, parent, ids: (
                block.scope == scope and same_digest(block.parent, parent) and block.token_ids == ids
            )
        ),
    ),
    Mistake(
        "the token ids are not compared",
        comparing(lambda block, scope, parent, ids: block.scope == scope and block.parent is parent),
    ),
    Mistake(
        "only the token ids are compared: compare the scope and the parent too",
        comparing(lambda block, scope, parent, ids: block.token_ids == ids),
    ),
    Mistake("the search stops at the first wrong candidate: more blocks can have the digest", FirstOnly),
    Mistake("false matches are not counted", CountsNothing),
    Mistake("one search can have several false matches: count every wrong candidate", CountsSearches),
    Mistake("the right block is counted as a false match", CountsAll),
    Mistake("a digest that no block has is not in the index: then nothing is found", Unsafe),
    Mistake("an evicted block is found, because what was found before is remembered", Remembers),
    Mistake("every block of the cache is looked at: `self._index` has the blocks of one digest", EveryBlock),
)
