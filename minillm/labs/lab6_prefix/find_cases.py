"""Task 6.3, the proof of a hit: cases of `_find`."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Words
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
from minillm.memory.prefix_cache import Scope


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


def same_place_case(cache_class: Any) -> list[bool]:
    """The parent was evicted, and another block has its id: the block after it has another parent."""
    user = CacheUser(cache_class, num_blocks=2, is_constant=True)
    (old,) = user.write([FIRST])
    user.leave([old])
    user.cache.evict(1)
    new, after = user.write([OTHER, SECOND])
    found = [user.cache._find(after.digest, HOME, parent, SECOND) for parent in (old, new)]
    return [new.block_id == old.block_id, found[0] is None, found[1] is after]


def left_case(cache_class: Any) -> Words:
    """Digests that searches without a hit leave in the index."""
    user = CacheUser(cache_class)
    user.write(STORY)
    for chain in ([OTHER], [SECOND, FIRST], STORY):
        user.find(chain)
    left = len(user.cache._index) - len(STORY)
    return Words(f"{left} digests without a block are in the index" if left else "no digest is added")


ALICE, BOB = Scope("model", "alice"), Scope("model", "bob")
FIND_CASES = (
    find_case("the same chains", (HOME, STORY), (HOME, (OTHER, SECOND)), is_constant=False),
    find_case("the same chains", (HOME, STORY), (HOME, (OTHER, SECOND))),
    find_case(
        "other token ids", (HOME, [(1, 2, 3, 5)]), (HOME, [FIRST, (5, 6, 7, 9)]), (HOME, [FIRST[::-1]])
    ),
    find_case("fewer or more token ids", (HOME, [FIRST[:3]]), (HOME, [(*FIRST, 5)]), (HOME, [()])),
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
    Case("another block has the id of the evicted parent", same_place_case, "aliasing"),
    Case("what a search leaves in the index", left_case, "cost"),
    walk_case(lambda user, blocks: user.find(STORY)),
)
