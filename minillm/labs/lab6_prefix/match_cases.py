"""Task 6.4, the longest chain of hits: cases and known mistakes of `match`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.lab6_prefix.cache_user import FIRST, HOME, OTHER, SECOND, STORY, CacheUser, Chain
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope

Keys = Iterable[tuple[bytes, Sequence[int]]]


def match_case(title: str, num_evicted: int, *wanted: Chain) -> Case:
    """The blocks found of each chain after `num_evicted` evictions, and the state, which must not change."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class)
        user.leave(user.write(STORY))
        user.cache.evict(num_evicted)
        return [[user.find(chain) for chain in wanted], user.state()]

    return Case(title, run)


def type_case(cache_class: Any) -> list[Any]:
    """Keys in a generator, with ids in tuples; then the answer is changed by the caller."""
    user = CacheUser(cache_class)
    user.write(STORY)
    keys = user.keys(HOME, STORY)
    found = [user.cache.match(HOME, ((digest, tuple(ids)) for digest, ids in keys)) for _ in range(2)]
    shown = [[block.block_id for block in chain] for chain in found]
    if isinstance(found[0], list):
        found[0].clear()
    third = user.cache.match(HOME, iter(keys))
    return [shown, [block.block_id for block in third], [list(ids) for _, ids in keys]]


def turns_case(cache_class: Any) -> list[Any]:
    """Two tenants search the same text in turns; between the searches blocks are evicted."""
    user, alice = CacheUser(cache_class), Scope("model", "alice")
    user.write(STORY, alice)
    user.leave(user.write(STORY[:2]))
    seen = [user.find(STORY, scope) for scope in (alice, HOME, alice, HOME)]
    user.cache.evict(1)
    return [seen, [user.find(STORY, scope) for scope in (HOME, alice)], user.state()]


def cost_case(cache_class: Any) -> Words:
    """The number of searches for a chain of 24 blocks, of which 12 are in the cache."""
    searches = 0

    class Counting(cache_class):  # type: ignore[misc] # the student's class
        def _find(self, *key: Any) -> Any:
            nonlocal searches
            searches += 1
            return super()._find(*key)

    user = CacheUser(Counting, num_blocks=16)
    chain = [(i, i, i, i) for i in range(24)]
    user.write(chain[:12])
    searches = 0
    user.find(chain)
    return Words("at most 26 searches" if searches <= 26 else "more than 26 searches, 13 are needed")


# --- known mistakes ---------------------------------------------------------------------------------


class Matches(PrefixCache):
    """The engine's `match`; subclasses change one part of it."""

    def _parent(self, found: list[CachedBlock]) -> CachedBlock | None:
        return found[-1] if found else None

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        found: list[CachedBlock] = []
        for digest, token_ids in blocks:
            block = self._find(digest, scope, self._parent(found), tuple(token_ids))
            if block is None:
                break
            found.append(block)
        return found


class NoParents(Matches):
    """Searches every block without a parent."""

    def _parent(self, found: list[CachedBlock]) -> CachedBlock | None:
        return None


class FirstIsParent(Matches):
    """The first block is the parent of all others."""

    def _parent(self, found: list[CachedBlock]) -> CachedBlock | None:
        return found[0] if found else None


class KeepsLists(PrefixCache):
    """Compares lists with tuples."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        found: list[CachedBlock] = []
        for digest, token_ids in blocks:
            block = None
            if isinstance(token_ids, tuple):
                block = self._find(digest, scope, found[-1] if found else None, token_ids)
            if block is None:
                break
            found.append(block)
        return found


class AllOrNothing(PrefixCache):
    """A hit is the whole chain or none."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        wanted = list(blocks)
        found = super().match(scope, wanted)
        return found if len(found) == len(wanted) else []


class TakesThem(PrefixCache):
    """Makes the caller an owner of the blocks."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        found = super().match(scope, blocks)
        self.acquire(found)
        return found


class TakesThemFromUnused(PrefixCache):
    """The blocks are not unused any more, but nobody owns them."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        found = super().match(scope, blocks)
        for block in found:
            self._unused.pop(block.block_id, None)
        return found


class SkipsMisses(Matches):
    """Continues after a block that was not found."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        found: list[CachedBlock] = []
        for digest, token_ids in blocks:
            block = self._find(digest, scope, self._parent(found), tuple(token_ids))
            if block is not None:
                found.append(block)
        return found


class DropsLast(PrefixCache):
    """Leaves out the last block that is found."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        return super().match(scope, blocks)[:-1]


class OnlyDigests(PrefixCache):
    """Takes any block with the digest."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        found: list[CachedBlock] = []
        for digest, _ in blocks:
            if digest not in self._index:
                break
            found.append(self._index[digest][0])
        return found


class ReturnsNone(PrefixCache):
    """Returns None if nothing is found."""

    def match(self, scope: Scope, blocks: Keys) -> Any:
        return super().match(scope, blocks) or None


class Remembers(PrefixCache):
    """Returns the same list again for the same keys."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        known: dict[Any, list[CachedBlock]] = vars(self).setdefault("known", {})
        wanted = [(digest, tuple(ids)) for digest, ids in blocks]
        return known.setdefault((scope, *wanted), super().match(scope, wanted))


class StartsAgain(Matches):
    """Searches the whole chain again for each further block."""

    def match(self, scope: Scope, blocks: Keys) -> list[CachedBlock]:
        wanted, found = list(blocks), list[CachedBlock]()
        for i in range(len(wanted)):
            longer = super().match(scope, wanted[: i + 1])
            if len(longer) == len(found):
                break
            found = longer
        return found


def false_case(cache_class: Any) -> list[list[int]]:
    """Chains that have the digests of other blocks."""
    user = CacheUser(cache_class, is_constant=True)
    user.write(STORY)
    return [user.find(chain) for chain in ([SECOND], [FIRST, OTHER], [FIRST, OTHER, SECOND], STORY)]


MATCH_CASES = (
    match_case("the whole chain, a longer one, shorter ones", 0, STORY, [*STORY, FIRST], STORY[:1], []),
    match_case("chains that differ after some blocks", 0, [FIRST, OTHER], [FIRST, SECOND, FIRST], [OTHER]),
    match_case("a block in the middle differs", 0, [OTHER, FIRST, SECOND], [FIRST, OTHER, SECOND, OTHER]),
    match_case("the last block was evicted", 1, STORY, [FIRST, SECOND, OTHER, FIRST]),
    Case("other texts with the same digest, constant hash", false_case),
    Case("keys in a generator, ids in tuples, the answer changed", type_case, "aliasing"),
    Case("two tenants in turns, with an eviction", turns_case, "aliasing"),
    Case("24 blocks of which 12 are cached", cost_case, "cost"),
)
MATCH_MISTAKES = (
    Mistake("every block is searched without its parent", NoParents),
    Mistake("the first block is used as every parent: the parent is the block before", FirstIsParent),
    Mistake(
        "a list of ids is compared with a tuple, and these are never equal: convert it to a tuple", KeepsLists
    ),
    Mistake("half a prompt is a hit too: return the longest chain that is found", AllOrNothing),
    Mistake("the caller becomes an owner: `match` changes no owner, `acquire` does", TakesThem),
    Mistake("the blocks are not unused any more: `match` changes nothing", TakesThemFromUnused),
    Mistake("the search goes on after a block that is not found: stop there", SkipsMisses),
    Mistake("the last block of the chain is missing", DropsLast),
    Mistake("the digest is trusted: `_find` compares the whole key", OnlyDigests),
    Mistake("if nothing is found, return an empty list", ReturnsNone),
    Mistake("what was found before is returned again, although the cache has changed", Remembers),
    Mistake("the chain is searched from its beginning for each block: go on from the last one", StartsAgain),
)
