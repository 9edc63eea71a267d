"""Lab 6: a prefix cache that proves its hits. What a key must hold, and what a match must compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from minillm.labs.lab import Case, Lab, Mistake, Part, Task
from minillm.labs.serving import Ask, serve
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import SCHEMA, CachedBlock, PrefixCache, Scope, encode, sha256

CACHE = "minillm.memory.prefix_cache"
HOME = Scope("model")
FIRST, SECOND, OTHER = (1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 9, 9)  # token ids of a block

# --- 6.1 the encoding ---------------------------------------------------------------------------------


def encode_case(title: str, *keys: tuple[Any, ...]) -> Case:
    """Which of these keys have the same bytes as an earlier one; none of the given ones should."""

    def run(function: Callable[..., bytes]) -> list[str]:
        seen: dict[bytes, tuple[Any, ...]] = {}
        clashes = []
        for key in keys:
            first = seen.setdefault(bytes(function(*key)), key)
            if first is not key:
                clashes.append(f"{first} = {key}")
        return clashes

    return Case(f"{title}: {', '.join(map(str, keys))}", run)


def smuggle_case(function: Callable[..., bytes]) -> bool:
    """Whether two fields can be read as two others, where one holds what stands between two fields."""
    left, right = b"XYX", b"ZYZ"
    between = bytes(function(left, right)).partition(left)[2].partition(right)[0]
    return function(left + between + right, b"!") == function(left, right + between + b"!")


def same_case(function: Callable[..., bytes]) -> list[bool]:
    """Equal fields have equal bytes, in whichever kind of sequence the ids come."""
    return [function("m", None, [1, 2]) == function("m", None, other) for other in ([1, 2], (1, 2))]


def joined(between: bytes, show: Callable[[Any], bytes]) -> Callable[..., bytes]:
    """An encoding that joins what `show` makes of the fields."""
    return lambda *fields: between.join(show(field) for field in fields)


def payload(field: Any) -> bytes:
    """A field's bytes, without its type and its length."""
    if isinstance(field, list | tuple):
        return b"".join(i.to_bytes(8, "little") for i in field)
    return field if isinstance(field, bytes) else b"" if field is None else str(field).encode()


def sized(field: Any) -> bytes:
    """A field's length and bytes."""
    return len(payload(field)).to_bytes(8, "little") + payload(field)


def tagged(field: Any) -> bytes:
    """A field's type and bytes."""
    kind = list if isinstance(field, tuple) else type(field)
    return kind.__name__.encode() + b":" + payload(field)


def narrow_ids(*fields: Any) -> bytes:
    """Ids in two bytes each."""
    return encode(*([i % (1 << 16) for i in f] if isinstance(f, list | tuple) else f for f in fields))


ENCODE_CASES = (
    encode_case("moved to the next field", ("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")),
    encode_case("with a comma in it", ("a,b", "c"), ("a", "b,c")),
    encode_case("nothing, in many ways", (None,), ("",), (b"",), ([],), (0,), ("None",)),
    encode_case("one, in many ways", (1,), ("1",), (b"1",), ([1],), ((49,),)),
    encode_case("ids in two fields", ([1], [2, 3]), ([1, 2], [3]), ([1, 2, 3], []), ([], [1, 2, 3])),
    encode_case("large ids", ([70_000],), ([70_000 - 65_536],), ([112, 17, 1],), ([1, 70_000],)),
    Case("a field that holds what stands between two fields", smuggle_case),
    Case("the same key twice, its ids in a list and in a tuple", same_case),
)
ENCODE_MISTAKES = (
    Mistake("fields run into each other: give each its length", joined(b"", payload)),
    Mistake("fields have no type: None, an empty text and no ids are different keys", joined(b"", sized)),
    Mistake("a separator or a tag is no length: it can occur in a field, too", joined(b"|", tagged)),
    Mistake("ids are cut to 16 bits: a vocabulary can be larger", narrow_ids),
    Mistake(
        "the kind of sequence is encoded: a list and a tuple of the same ids are the same key",
        lambda *fields: repr(fields).encode(),
    ),
    Mistake(
        "Python's `hash` is no encoding: different keys can have one hash",
        lambda *fields: b"%d" % hash(str(fields[0])),
    ),
)

# --- 6.2 the digest -----------------------------------------------------------------------------------


def same_bytes(data: bytes) -> bytes:
    """A hash function that hashes nothing, so that what it was given can be seen."""
    return data


def digest_case(cache_class: Any) -> list[str]:
    """Which one changes leave a block's digest as it was."""
    cache = cache_class(BlockPool(8, 4))
    whole = (Scope("model", "alice", "image"), b"parent", FIRST)
    changes: dict[str, tuple[Scope, bytes | None, Sequence[int]]] = {
        "envelope": (Scope("other", "alice", "image"), b"parent", FIRST),
        "tenant": (Scope("model", "bob", "image"), b"parent", FIRST),
        "no tenant": (Scope("model", None, "image"), b"parent", FIRST),
        "conditioning": (Scope("model", "alice", "sound"), b"parent", FIRST),
        "parent": (whole[0], b"another", FIRST),
        "no parent": (whole[0], None, FIRST),
        "token ids": (whole[0], b"parent", SECOND),
        "order of the ids": (whole[0], b"parent", FIRST[::-1]),
        "tenant and envelope exchanged": (Scope("alice", "model", "image"), b"parent", FIRST),
        "tenant moved to conditioning": (Scope("model", None, "aliceimage"), b"parent", FIRST),
    }
    own = cache.digest(*whole)
    return [*(name for name, key in changes.items() if cache.digest(*key) == own)]


def used_hash_case(cache_class: Any) -> list[Any]:
    """Equal keys agree, the cache's own hash function is asked, and the schema is in what it is given."""
    hashed: list[bytes] = []

    def watched(data: bytes) -> bytes:
        hashed.append(data)
        return b"digest"

    cache = cache_class(BlockPool(8, 4), watched)
    found = [cache.digest(HOME, b"parent", ids) for ids in (list(FIRST), FIRST)]
    return [found, [encode(SCHEMA) in data for data in hashed]]


class Digests(PrefixCache):
    """The engine's digest of a key with one field exchanged."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent, token_ids)

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return self._hash(self._key(scope, parent, token_ids))


class NoChain(Digests):
    """The same tokens anywhere."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, None, token_ids)


class NoScope(Digests):
    """The same tokens of anybody."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, parent, token_ids)


class NoTenant(Digests):
    """Of the scope, the model's part alone."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, scope.envelope, parent, token_ids)


class NoTokens(Digests):
    """Who and where, but not what."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent)


class NoSchema(Digests):
    """As if the format would never change."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(*scope, parent, token_ids)


class AnyOrder(Digests):
    """A set of tokens."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent, sorted(token_ids))


class OwnHash(Digests):
    """Not the function that the cache was made with."""

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return sha256(self._key(scope, parent, token_ids))


DIGEST_CASES = (
    Case("a change that leaves the digest as it was", digest_case),
    Case("what is hashed, and by whom", used_hash_case),
)
DIGEST_MISTAKES = (
    Mistake(
        "the parent is missing: the same tokens behind another beginning have other keys and values", NoChain
    ),
    Mistake("the scope is missing: who may share is a part of the key", NoScope),
    Mistake("only the envelope of the scope is in the key: tenant and conditioning belong to it", NoTenant),
    Mistake("the token ids are missing", NoTokens),
    Mistake("the version of the format is missing: SCHEMA is a field, too", NoSchema),
    Mistake("the ids are sorted: their order is what was read", AnyOrder),
    Mistake("the hash function given to the cache is not used", OwnHash),
)

# --- 6.3 to 6.7 the cache -----------------------------------------------------------------------------

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


def publish_case(title: str, is_constant: bool, *chains: Chain) -> Case:
    """Publish chain after chain; the blocks to use, what is found afterwards, and the books."""

    def run(cache_class: Any) -> list[Any]:
        desk = Desk(cache_class, is_constant=is_constant)
        used = [[block.block_id for block in desk.write(chain)] for chain in chains]
        return [used, [desk.find(chain) for chain in chains], desk.books()]

    return Case(f"{title}, {'constant hash' if is_constant else 'SHA-256'}", run)


class OwnsNothing(PrefixCache):
    """Findable, and free as soon as its sequence ends."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        block = super().publish(scope, parent, token_ids, digest, block_id)
        if block.block_id == block_id:
            self._pool.free([block_id])
        return block


class PublishesTwice(PrefixCache):
    """The same content is findable in two blocks."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        block = CachedBlock(block_id, scope, parent, tuple(token_ids), digest)
        self._pool.share([block_id])
        self._index.setdefault(digest, []).append(block)
        self._by_block[block_id] = block
        return block


class OnePerDigest(PrefixCache):
    """A block takes the place of those with its digest."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        block = super().publish(scope, parent, token_ids, digest, block_id)
        self._index[digest] = [block]
        return block


class ForgetsTheParent(PrefixCache):
    """Every block begins a prompt."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        return super().publish(scope, None, token_ids, digest, block_id)


class SharesTheOlder(PrefixCache):
    """Counts the caller as an owner of the older copy."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        block = super().publish(scope, parent, token_ids, digest, block_id)
        if block.block_id != block_id:
            self._pool.share([block.block_id])
        return block


def release_case(title: str, use: Callable[[Desk], None]) -> Case:
    """The books after `use`, and what is still found after each eviction of one block."""

    def run(cache_class: Any) -> list[Any]:
        desk = Desk(cache_class)
        use(desk)
        seen = [desk.books()]
        for _ in range(desk.cache.num_unused):
            desk.cache.evict(1)
            seen.append([desk.find(STORY), desk.find([OTHER, SECOND]), desk.books()])
        return seen

    return Case(title, run)


def one_leaves(desk: Desk) -> None:
    """A sequence of three blocks leaves."""
    desk.leave(*(block.block_id for block in desk.write(STORY)))


def two_leave(desk: Desk) -> None:
    """Two sequences leave, the second first."""
    first, second = desk.write([OTHER, SECOND]), desk.write(STORY)
    for blocks in (second, first):
        desk.leave(*(block.block_id for block in blocks))


def one_of_two_leaves(desk: Desk) -> None:
    """A sequence leaves whose first two blocks another one reads."""
    blocks = desk.write(STORY)
    desk.cache.acquire(blocks[:2])
    desk.leave(*(block.block_id for block in blocks))


def leaves_unpublished(desk: Desk) -> None:
    """A sequence leaves whose last block is only partly full."""
    blocks = desk.write(STORY)
    desk.leave(*(block.block_id for block in blocks), *desk.pool.allocate(1))


class ReleasesForward(PrefixCache):
    """The first block of a sequence has been unused for longest."""

    def released(self, block_ids: Sequence[int]) -> None:
        super().released(block_ids[::-1])


class ReleasesUsed(PrefixCache):
    """Whoever leaves, the block is unused."""

    def released(self, block_ids: Sequence[int]) -> None:
        for block_id in reversed(block_ids):
            if block_id in self._by_block:
                self._unused[block_id] = self._by_block[block_id]


class ReleasesUnknown(PrefixCache):
    """Expects every block to be known."""

    def released(self, block_ids: Sequence[int]) -> None:
        for block_id in reversed(block_ids):
            if self._pool.ref_count(block_id) <= 1:
                self._unused[block_id] = self._by_block[block_id]


class ReleasesNothing(PrefixCache):
    """Nothing is ever unused."""

    def released(self, block_ids: Sequence[int]) -> None:
        pass


def evict_case(title: str, count: int, is_constant: bool) -> Case:
    """Two sequences have left; evict, and see what is found, and what the pool has back."""

    def run(cache_class: Any) -> list[Any]:
        desk = Desk(cache_class, is_constant=is_constant)
        two_leave(desk)
        evicted = desk.cache.evict(count)
        return [evicted, desk.find(STORY), desk.find([OTHER, SECOND]), desk.books()]

    return Case(f"{title}, {'constant hash' if is_constant else 'SHA-256'}", run)


class EvictsNewest(PrefixCache):
    """The block that was used last goes."""

    def evict(self, count: int) -> int:
        for block_id in reversed(list(self._unused)):
            self._unused.move_to_end(block_id)
        return super().evict(count)


class StaysFindable(PrefixCache):
    """A block that is somebody else's by now can still be found."""

    def evict(self, count: int) -> int:
        index = {digest: list(bucket) for digest, bucket in self._index.items()}
        evicted = super().evict(count)
        self._index = index
        return evicted


class EmptiesTheBucket(PrefixCache):
    """Forgets every block with the digest of the evicted one."""

    def evict(self, count: int) -> int:
        digests = [block.digest for block in list(self._unused.values())[:count]]
        evicted = super().evict(count)
        for digest in digests:
            self._index.pop(digest, None)
        return evicted


class KeepsTheBlock(PrefixCache):
    """Not findable, and not free."""

    def evict(self, count: int) -> int:
        ids = list(self._unused)[:count]
        self._pool.share(ids)
        return super().evict(count)


class SaysCount(PrefixCache):
    """Claims to have given back what was asked for."""

    def evict(self, count: int) -> int:
        super().evict(count)
        return count


class EvictsAll(PrefixCache):
    """Makes a clean sweep."""

    def evict(self, count: int) -> int:
        return super().evict(self.num_unused)


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
PUBLISH_CASES = (
    publish_case("a chain", False, STORY),
    publish_case("two that part", False, STORY, [FIRST, OTHER]),
    publish_case("the same twice", False, STORY, STORY[:2]),
    publish_case("two chains", True, STORY, [OTHER, SECOND]),
)
PUBLISH_MISTAKES = (
    Mistake(
        "the cache is no owner of the block: it would be handed out again while it can be found", OwnsNothing
    ),
    Mistake("content that is cached already is published again: return the older copy", PublishesTwice),
    Mistake("a block with the same digest is replaced: keep all of them", OnePerDigest),
    Mistake("the parent is lost: it is a part of the key", ForgetsTheParent),
    Mistake("the older copy gets an owner: the caller will `acquire` it", SharesTheOlder),
)
RELEASE_CASES = (
    release_case("a sequence of three blocks leaves", one_leaves),
    release_case("two leave, the second first", two_leave),
    release_case("one leaves whose blocks another one reads", one_of_two_leaves),
    release_case("one leaves with a partly full block", leaves_unpublished),
)
RELEASE_MISTAKES = (
    Mistake(
        "parents go before children, and a child without its parent can never be found: last block first",
        ReleasesForward,
    ),
    Mistake(
        "a block that somebody still reads is unused: ask the pool whether the cache is its only owner",
        ReleasesUsed,
    ),
    Mistake("not every block is known to the cache: the last one is often partly full", ReleasesUnknown),
    Mistake("nothing becomes unused, so nothing can be evicted: the pool will run dry", ReleasesNothing),
)
EVICT_CASES = (
    evict_case("one", 1, False),
    evict_case("three", 3, False),
    evict_case("one", 1, True),
    evict_case("three", 3, True),
    evict_case("more than there are", 9, False),
    evict_case("none", 0, False),
)
EVICT_MISTAKES = (
    Mistake(
        "the most recently used block goes; it is the least recently used one that is missed least",
        EvictsNewest,
    ),
    Mistake("an evicted block can still be found, though its memory is somebody else's now", StaysFindable),
    Mistake(
        "blocks with the same digest are forgotten with it: take this one out of its list", EmptiesTheBucket
    ),
    Mistake("the cache gives up its share of the block, but the pool is not told: `free`", KeepsTheBlock),
    Mistake("there may be fewer unused blocks than asked for: return how many went", SaysCount),
    Mistake("more is evicted than asked for", EvictsAll),
)

# --- 6.8 the engine -----------------------------------------------------------------------------------


def in_engine(asks: Sequence[Ask], num_blocks: int, is_constant: bool, parts: Any) -> list[Any]:
    """Every step, the answers, and what the cache says of itself."""
    caches = list[Any]()

    def make_cache(pool: Any) -> Any:
        caches.append(parts.PrefixCache(pool, (lambda data: b"same") if is_constant else sha256))
        return caches[0]

    served = serve({"prefix_cache": make_cache}, asks, num_blocks)
    return [*served, caches[0].num_blocks, caches[0].num_unused, caches[0].false_matches]


QUESTIONS = (
    Ask(25, 6, story=1),
    Ask(33, 9, at=4, story=1),
    Ask(30, 5, at=5, story=2, n=2),
    Ask(25, 6, at=9, story=1, tenant="alice"),
    Ask(33, 6, at=14, story=1, tenant="alice"),
    Ask(27, 12, at=16, story=2),
)

LAB = Lab(
    6,
    "prefix",
    "A prefix cache that proves its hits",
    (
        Task(
            "6.1", "no two keys with the same bytes", 15, Part(CACHE, "encode"), ENCODE_CASES, ENCODE_MISTAKES
        ),
        Task(
            "6.2",
            "the key of a block",
            10,
            Part(CACHE, "PrefixCache", ("digest",)),
            DIGEST_CASES,
            DIGEST_MISTAKES,
        ),
        Task("6.3", "the proof", 20, Part(CACHE, "PrefixCache", ("_find",)), FIND_CASES, FIND_MISTAKES),
        Task(
            "6.4",
            "the longest chain",
            10,
            Part(CACHE, "PrefixCache", ("match",)),
            MATCH_CASES,
            MATCH_MISTAKES,
        ),
        Task(
            "6.5",
            "make a block findable",
            15,
            Part(CACHE, "PrefixCache", ("publish",)),
            PUBLISH_CASES,
            PUBLISH_MISTAKES,
        ),
        Task(
            "6.6",
            "unused, but kept",
            10,
            Part(CACHE, "PrefixCache", ("released",)),
            RELEASE_CASES,
            RELEASE_MISTAKES,
        ),
        Task("6.7", "make room", 10, Part(CACHE, "PrefixCache", ("evict",)), EVICT_CASES, EVICT_MISTAKES),
        Task(
            "6.8",
            "your cache in the running engine",
            10,
            None,
            (
                Case("questions to two stories, from two tenants", partial(in_engine, QUESTIONS, 60, False)),
                Case("in a small pool, with evictions", partial(in_engine, QUESTIONS, 16, False)),
                Case("with a constant hash function", partial(in_engine, QUESTIONS, 60, True)),
            ),
        ),
    ),
)
