"""What the cases of lab 6 do with a prefix cache: sequences write blocks, search blocks, and free them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Words
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import CachedBlock, Scope, sha256

HOME = Scope("model")
FIRST, SECOND, OTHER = (1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 9, 9)  # token ids of a block
Chain = Sequence[tuple[int, ...]]
STORY: Chain = (FIRST, SECOND, OTHER)


def mixed_pool(num_blocks: int) -> BlockPool:
    """A pool that has been in use: it allocates its blocks in no simple order."""
    pool = BlockPool(num_blocks, 4)
    ids = pool.allocate(num_blocks)
    for block_id in [*ids[1::2], *ids[0::4], *ids[2::4]]:
        pool.free([block_id])
    return pool


class CacheUser:
    """A cache with a pool, and the actions of a sequence; a constant hash gives every key the same digest."""

    def __init__(self, cache_class: Any, num_blocks: int = 8, is_constant: bool = False) -> None:
        self.pool = mixed_pool(num_blocks)
        self.cache = cache_class(self.pool, (lambda data: b"same") if is_constant else sha256)

    def keys(self, scope: Scope, chain: Chain) -> list[tuple[bytes, list[int]]]:
        """(digest, token ids) of each block."""
        keys, parent = list[tuple[bytes, list[int]]](), None
        for ids in chain:
            parent = self.cache.digest(scope, parent, list(ids))
            keys.append((parent, list(ids)))
        return keys

    def write(self, chain: Chain, scope: Scope = HOME) -> list[CachedBlock]:
        """A sequence computes all blocks, publishes them, and still owns them.

        If the cache has an older copy, the sequence owns that, and frees its own.
        """
        blocks, parent = list[CachedBlock](), None
        for digest, ids in self.keys(scope, chain):
            (mine,) = self.pool.allocate(1)
            parent = self.cache.publish(scope, parent, ids, digest, mine)
            if parent.block_id != mine:
                self.cache.acquire([parent])
                self.pool.free([mine])
            blocks.append(parent)
        return blocks

    def enter(self, chain: Chain, scope: Scope = HOME) -> list[CachedBlock]:
        """A sequence starts from the blocks that are found, and owns them."""
        found: list[CachedBlock] = self.cache.match(scope, self.keys(scope, chain))
        self.cache.acquire(found)
        return found

    def leave(self, blocks: Iterable[CachedBlock]) -> None:
        """A sequence frees its blocks."""
        self.free([block.block_id for block in blocks])

    def free(self, block_ids: list[int]) -> None:
        """A sequence frees blocks, which are perhaps not in the cache."""
        self.pool.free(block_ids)
        self.cache.released(block_ids)

    def find(self, chain: Chain, scope: Scope = HOME) -> list[int]:
        """The ids of the blocks that are found."""
        return [block.block_id for block in self.cache.match(scope, self.keys(scope, chain))]

    def state(self) -> list[Any]:
        """The state of the cache: findable blocks, unused blocks, owners of each block, free blocks."""
        owners = [self.pool.ref_count(block) for block in range(self.pool.num_blocks)]
        return [self.cache.num_blocks, self.cache.num_unused, owners, self.pool.num_free]


def hash_name(is_constant: bool) -> str:
    """Which hash function a case uses."""
    return "constant hash" if is_constant else "SHA-256"


# --- what a call looks at -----------------------------------------------------------------------------


class Watched(dict[Any, Any]):
    """A dict that counts how often something walks over all of its entries."""

    walks = 0

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        return super().__iter__()

    def keys(self) -> Any:
        """Walks."""
        self.walks += 1
        return super().keys()

    def values(self) -> Any:
        """Walks."""
        self.walks += 1
        return super().values()

    def items(self) -> Any:
        """Walks."""
        self.walks += 1
        return super().items()


def watched(cache: Any) -> Callable[[], list[Words]]:
    """From now on, count the walks over all of the cache; the result says what was walked over."""
    by_block, index = Watched(cache._by_block), Watched(cache._index)
    cache._by_block, cache._index = by_block, index

    def walks() -> list[Words]:
        seen = [("block", by_block.walks), ("digest", index.walks)]
        return [Words(f"walks over every {what} of the cache") for what, count in seen if count]

    return walks


def walk_case(act: Callable[[CacheUser, list[CachedBlock]], Any]) -> Case:
    """`act` with the blocks of STORY; does it walk over every block or every digest of the cache?"""

    def run(cache_class: Any) -> list[Words]:
        user = CacheUser(cache_class)
        blocks = user.write(STORY)
        user.leave(user.write([OTHER, SECOND]))
        walks = watched(user.cache)
        act(user, blocks)
        return walks()

    return Case("what one call looks at", run, "cost")


# --- random lives of a cache --------------------------------------------------------------------------

Action = tuple[str, Any, Scope]
SCOPES = (HOME, Scope("model", "alice"), Scope("model", None, "alice"))


def _random_actions(random: Random) -> list[Action]:
    """Sequences come and leave, search and evict; a number stands for one of the running sequences."""
    found: list[Action] = []
    for _ in range(48):
        name = random.choice(["write", "enter", "leave", "leave", "find", "evict"])
        chain = [random.choice(STORY) for _ in range(random.randint(1, 4))]
        found.append((name, chain if name in ("write", "enter", "find") else random.randint(0, 3), HOME))
        found[-1] = (*found[-1][:2], random.choice(SCOPES))
    return found


class Life:
    """A cache and its running sequences. Ids of blocks are not shown: any free block may be taken first."""

    def __init__(self, cache_class: Any, is_constant: bool) -> None:
        self._user = CacheUser(cache_class, 128, is_constant)
        self._running: list[list[CachedBlock]] = []
        self._content: dict[int, str] = {}  # block id -> its tenant and text, from the beginning on

    def act(self, action: Action) -> list[Any]:
        """Carry out one action; return what it answers, and the state."""
        name, what, scope = action
        found: Any = None
        if name == "evict":
            found = self._user.cache.evict(what)
        elif name == "find":
            found = [self._content[block_id] for block_id in self._user.find(what, scope)]
        elif name == "leave" and self._running:
            self._user.leave(self._running.pop(what % len(self._running)))
        elif name == "enter":
            self._running.append(self._user.enter(what, scope))
            found = [self._content[block.block_id] for block in self._running[-1]]
        elif name == "write":
            self._running.append(self._user.write(what, scope))
            for i, block in enumerate(self._running[-1]):
                self._content[block.block_id] = f"{scope[1:]} {what[: i + 1]}"
        num_blocks, num_unused, owners, num_free = self._user.state()
        return [Words(name), found, num_blocks, num_unused, sorted(owners), num_free]


def _life_case(number: int, actions: list[Action], is_constant: bool) -> Case:
    def run(cache_class: Any) -> list[Any]:
        life = Life(cache_class, is_constant)
        return [life.act(action) for action in actions]

    return Case(f"random actions {number}, {hash_name(is_constant)}", run)


def random_lives(random: Random) -> Iterable[Case]:
    """Random cases of the tasks about a method of the cache."""
    for number in range(4):
        yield _life_case(number + 1, _random_actions(random), number % 2 == 1)
