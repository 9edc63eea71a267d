"""Task 6.3, the proof of a hit: cases and known mistakes of `_find`."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import FIRST, HOME, OTHER, SECOND, STORY, CacheUser, Chain
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope


def find_case(
    title: str, *wanted: tuple[Scope, Chain], written: Scope = HOME, is_constant: bool = True
) -> Case:
    """Write STORY and another chain; show the blocks found for each wanted chain, and the false matches."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class, is_constant=is_constant)
        user.write([OTHER, SECOND], written)  # blocks 0 and 1
        user.write(STORY, written)  # blocks 2, 3 and 4
        found = [user.find(chain, scope) for scope, chain in wanted]
        return [found, user.cache.false_matches]

    return Case(f"{title}, {'constant hash' if is_constant else 'SHA-256'}", run)


class Finds(PrefixCache):
    """The engine's `_find`; subclasses change one comparison."""

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
    """Returns any block with the digest."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return True


class AnyScope(Finds):
    """Does not compare the scope."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return block.parent is parent and block.token_ids == ids


class AnyParent(Finds):
    """Does not compare the parent."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return block.scope == scope and block.token_ids == ids


class ParentByDigest(Finds):
    """Compares the parent by its digest, so it trusts the hash."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        before, after = (x.digest if x else None for x in (block.parent, parent))
        return block.scope == scope and before == after and block.token_ids == ids


class AnyTokens(Finds):
    """Does not compare the token ids."""

    def _same(
        self, block: CachedBlock, scope: Scope, parent: CachedBlock | None, ids: tuple[int, ...]
    ) -> bool:
        return block.scope == scope and block.parent is parent


class FirstOnly(PrefixCache):
    """Stops at the first candidate that is not the right block."""

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
    """Finds the right block, but does not count false matches."""

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        before = self.false_matches
        found = super()._find(digest, scope, parent, token_ids)
        self.false_matches = before
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
        "known blocks after another parent",
        (HOME, [SECOND]),
        (HOME, [FIRST, OTHER]),
        (HOME, [OTHER, SECOND, OTHER]),
    ),
)
FIND_MISTAKES = (
    Mistake("the hash is trusted: any block with the digest is a hit. Compare every field", TrustsTheHash),
    Mistake("the scope is not compared, so one tenant or model finds the blocks of another", AnyScope),
    Mistake(
        "the parent is not compared: the same tokens after another beginning are another block", AnyParent
    ),
    Mistake(
        "the parent is compared by its digest, so the hash is trusted: compare its identity (`is`)",
        ParentByDigest,
    ),
    Mistake("the token ids are not compared", AnyTokens),
    Mistake("the search stops at the first wrong candidate: more blocks can have the digest", FirstOnly),
    Mistake("false matches are not counted", CountsNothing),
)
