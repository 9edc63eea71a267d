"""Task 6.3, the proof of a hit: known mistakes of `_find`."""

from __future__ import annotations

from collections.abc import Callable

from minillm.labs.grader.lab import Mistake
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope

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


def block_id_of(block: CachedBlock | None) -> int | None:
    """The id of a parent."""
    return block.block_id if block else None


class AddsDigest(Finds):
    """Adds an empty list for a digest that no block has."""

    def _candidates(self, digest: bytes) -> list[CachedBlock]:
        return list(self._index.setdefault(digest, []))


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
        "the parent is compared by its block id, which another block can have now: compare with `is`",
        comparing(
            lambda block, scope, parent, ids: (
                block.scope == scope
                and block_id_of(block.parent) == block_id_of(parent)
                and block.token_ids == ids
            )
        ),
    ),
    Mistake(
        "only as many ids are compared as the shorter block has: compare the whole tuples",
        comparing(
            lambda block, scope, parent, ids: (
                block.scope == scope
                and block.parent is parent
                and all(a == b for a, b in zip(block.token_ids, ids, strict=False))
            )
        ),
    ),
    Mistake("a search adds an empty list to the index for every new digest: use `get`", AddsDigest),
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
