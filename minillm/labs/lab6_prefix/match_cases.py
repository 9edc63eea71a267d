"""Task 6.4, the longest chain of hits: cases and known mistakes of `match`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import FIRST, OTHER, SECOND, STORY, CacheUser, Chain
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope


def match_case(title: str, num_evicted: int, *wanted: Chain) -> Case:
    """The blocks found of each chain after `num_evicted` evictions, and the state, which must not change."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class)
        blocks = user.write(STORY)
        user.leave(*(block.block_id for block in blocks))
        user.cache.evict(num_evicted)
        return [[user.find(chain) for chain in wanted], user.state()]

    return Case(title, run)


class Matches(PrefixCache):
    """The engine's `match`; subclasses change one part of it."""

    def _parent(self, found: list[CachedBlock]) -> CachedBlock | None:
        return found[-1] if found else None

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
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

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        return super().match(scope, [key for key in blocks if isinstance(key[1], tuple)])


class AllOrNothing(PrefixCache):
    """A hit is the whole chain or none."""

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        wanted = list(blocks)
        found = super().match(scope, wanted)
        return found if len(found) == len(wanted) else []


class TakesThem(PrefixCache):
    """Makes the caller an owner of the blocks."""

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        found = super().match(scope, blocks)
        self.acquire(found)
        return found


MATCH_CASES = (
    match_case("the whole chain, a longer one, shorter ones", 0, STORY, [*STORY, FIRST], STORY[:1], []),
    match_case("chains that differ after some blocks", 0, [FIRST, OTHER], [FIRST, SECOND, FIRST], [OTHER]),
    match_case("the last block was evicted", 1, STORY, [FIRST, SECOND, OTHER, FIRST]),
)
MATCH_MISTAKES = (
    Mistake("every block is searched without its parent", NoParents),
    Mistake("the first block is used as every parent: the parent is the block before", FirstIsParent),
    Mistake(
        "a list of ids is compared with a tuple, and these are never equal: convert it to a tuple", KeepsLists
    ),
    Mistake("half a prompt is a hit too: return the longest chain that is found", AllOrNothing),
    Mistake("the caller becomes an owner: `match` changes no owner, `acquire` does", TakesThem),
)
