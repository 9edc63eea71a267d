"""Task 6.4, the longest chain of hits: cases and known mistakes of `match`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import FIRST, OTHER, SECOND, STORY, CacheUser, Chain
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope


def match_case(title: str, num_evicted: int, *wanted: Chain) -> Case:
    """What is found of each chain, and that nothing has changed hands; `num_evicted` blocks are gone."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class)
        blocks = user.write(STORY)
        user.leave(*(block.block_id for block in blocks))
        user.cache.evict(num_evicted)
        return [[user.find(chain) for chain in wanted], user.books()]

    return Case(title, run)


class Matches(PrefixCache):
    """The engine's `match` with one idea exchanged."""

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
    """Every block is looked for as if it were the first."""

    def _parent(self, found: list[CachedBlock]) -> CachedBlock | None:
        return None


class FirstIsParent(Matches):
    """The parent stays what it was at first."""

    def _parent(self, found: list[CachedBlock]) -> CachedBlock | None:
        return found[0] if found else None


class KeepsLists(PrefixCache):
    """Looks for a list where tuples are kept."""

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        return super().match(scope, [key for key in blocks if isinstance(key[1], tuple)])


class AllOrNothing(PrefixCache):
    """A hit is the whole chain or none."""

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        wanted = list(blocks)
        found = super().match(scope, wanted)
        return found if len(found) == len(wanted) else []


class TakesThem(PrefixCache):
    """Makes the caller an owner already."""

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        found = super().match(scope, blocks)
        self.acquire(found)
        return found


MATCH_CASES = (
    match_case("all of it, more of it, less of it", 0, STORY, [*STORY, FIRST], STORY[:1], []),
    match_case("it parts on the way", 0, [FIRST, OTHER], [FIRST, SECOND, FIRST], [OTHER]),
    match_case("the last block was evicted", 1, STORY, [FIRST, SECOND, OTHER, FIRST]),
)
MATCH_MISTAKES = (
    Mistake("every block is looked for without its parent", NoParents),
    Mistake("the parent is the block before, not the first of the chain", FirstIsParent),
    Mistake(
        "ids come as lists and are kept as tuples, which are never equal: make tuples of them", KeepsLists
    ),
    Mistake("half a prompt is a hit too: the longest chain that is there", AllOrNothing),
    Mistake("the caller is made an owner: a match only looks, `acquire` takes", TakesThem),
)
