"""Hits of the prefix cache, for lab 6: cases and known mistakes of `_find` and `match`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from minillm.labs.keys import FIRST, HOME, OTHER, SECOND
from minillm.labs.lab import Case, Mistake
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope, sha256

Chain = Sequence[tuple[int, ...]]
STORY: Chain = (FIRST, SECOND, OTHER)


class Desk:
    """A cache with a pool, and what a sequence does with them; a constant hash makes every key alike."""

    def __init__(self, cache_class: Any, num_blocks: int = 8, is_constant: bool = False) -> None:
        self.pool = BlockPool(num_blocks, 4)
        self.cache = cache_class(self.pool, (lambda data: b"same") if is_constant else sha256)

    def keys(self, scope: Scope, chain: Chain) -> list[tuple[bytes, Sequence[int]]]:
        """(digest, token ids) of each block."""
        keys, parent = list[tuple[bytes, Sequence[int]]](), None
        for ids in chain:
            parent = self.cache.digest(scope, parent, list(ids))
            keys.append((parent, list(ids)))
        return keys

    def write(self, chain: Chain, scope: Scope = HOME) -> list[CachedBlock]:
        """A sequence computes all blocks, publishes them, and still owns them."""
        blocks, parent = list[CachedBlock](), None
        for digest, ids in self.keys(scope, chain):
            (block_id,) = self.pool.allocate(1)
            parent = self.cache.publish(scope, parent, ids, digest, block_id)
            blocks.append(parent)
        return blocks

    def leave(self, *block_ids: int) -> None:
        """A sequence gives its blocks back."""
        self.pool.free(block_ids)
        self.cache.released(block_ids)

    def find(self, chain: Chain, scope: Scope = HOME) -> list[int]:
        """The ids of the blocks that are found."""
        return [block.block_id for block in self.cache.match(scope, self.keys(scope, chain))]

    def books(self) -> list[Any]:
        """Findable, unused, each block's owners, free ones."""
        owners = [self.pool.ref_count(block) for block in range(self.pool.num_blocks)]
        return [self.cache.num_blocks, self.cache.num_unused, owners, self.pool.num_free]


def find_case(
    title: str, *wanted: tuple[Scope, Chain], written: Scope = HOME, is_constant: bool = True
) -> Case:
    """Write STORY and another beginning; then what is found for each wanted chain, and the false matches."""

    def run(cache_class: Any) -> list[Any]:
        desk = Desk(cache_class, is_constant=is_constant)
        desk.write([OTHER, SECOND], written)  # blocks 0 and 1
        desk.write(STORY, written)  # blocks 2, 3 and 4
        found = [desk.find(chain, scope) for scope, chain in wanted]
        return [found, desk.cache.false_matches]

    return Case(f"{title}, {'constant hash' if is_constant else 'SHA-256'}", run)


class Finds(PrefixCache):
    """The engine's `_find` with one comparison exchanged."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return block.scope == scope and block.parent is parent and block.token_ids == ids

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        for block in self._index.get(digest, ()):
            if self._same(block, scope, parent, token_ids):
                return block
            self.false_matches += 1
        return None


class TrustsTheHash(Finds):
    """Whatever has the digest."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return True


class AnyScope(Finds):
    """Everybody shares."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return block.parent is parent and block.token_ids == ids


class AnyParent(Finds):
    """The same tokens after anything."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return block.scope == scope and block.token_ids == ids


class ParentByDigest(Finds):
    """The parent is compared by its digest: that is trusting the hash again."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        before, after = (x.digest if x else None for x in (block.parent, parent))
        return block.scope == scope and before == after and block.token_ids == ids


class AnyTokens(Finds):
    """Who and where, but not what."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return block.scope == scope and block.parent is parent


class FirstOnly(PrefixCache):
    """Gives up at the first candidate that is another."""

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        for block in self._index.get(digest, ()):
            if block.scope == scope and block.parent is parent and block.token_ids == token_ids:
                return block
            self.false_matches += 1
            return None
        return None


class CountsNothing(PrefixCache):
    """Right, and silent about it."""

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        before = self.false_matches
        found = super()._find(digest, scope, parent, token_ids)
        self.false_matches = before
        return found


def match_case(title: str, num_evicted: int, *wanted: Chain) -> Case:
    """What is found of each chain, and that nothing has changed hands; `num_evicted` blocks are gone."""

    def run(cache_class: Any) -> list[Any]:
        desk = Desk(cache_class)
        blocks = desk.write(STORY)
        desk.leave(*(block.block_id for block in blocks))
        desk.cache.evict(num_evicted)
        return [[desk.find(chain) for chain in wanted], desk.books()]

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


FIND_CASES = (
    find_case("the same chains", (HOME, STORY), (HOME, (OTHER, SECOND)), is_constant=False),
    find_case("the same chains", (HOME, STORY), (HOME, (OTHER, SECOND))),
    find_case(
        "other token ids", (HOME, [(1, 2, 3, 5)]), (HOME, [FIRST, (5, 6, 7, 9)]), (HOME, [FIRST[::-1]])
    ),
    find_case(
        "another tenant", (Scope("model", "bob"), STORY), (HOME, STORY), written=Scope("model", "alice")
    ),
    find_case("another model", (Scope("other"), STORY)),
    find_case("other conditioning", (Scope("model", None, "image"), STORY)),
    find_case("a tenant moved to conditioning", (Scope("m", None, "x"), STORY), written=Scope("m", "x", "")),
    find_case(
        "known blocks behind another parent",
        (HOME, [SECOND]),
        (HOME, [FIRST, OTHER]),
        (HOME, [OTHER, SECOND, OTHER]),
    ),
)
FIND_MISTAKES = (
    Mistake("the hash is trusted: whatever has the digest is a hit. Compare every field", TrustsTheHash),
    Mistake("the scope is not compared, so one tenant or model finds the blocks of another", AnyScope),
    Mistake(
        "the parent is not compared: the same tokens behind another beginning are another block", AnyParent
    ),
    Mistake(
        "the parent is compared by its digest: compare its identity (`is`), or the hash is trusted after all",
        ParentByDigest,
    ),
    Mistake("the token ids are not compared", AnyTokens),
    Mistake(
        "the search ends at the first candidate that is another: there can be more with the digest", FirstOnly
    ),
    Mistake("false matches are not counted", CountsNothing),
)
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
