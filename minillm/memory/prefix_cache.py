r"""The prefix cache: a full block that has already been computed is not computed again.

    prompt of a   [ t0 .. t15 ][ t16 .. t31 ][ t32 .. ]      a computed its prompt; two full blocks are cached
    prompt of b   [ t0 .. t15 ][ t16 .. t31 ][ u32 .. ]      b shares these blocks and computes from 32 on

    root --- block 5 (t0..15) --- block 2 (t16..31) --- block 9 (t32..47)
                              \-- block 7 (v16..31)                          one tree for each scope

A hit is a proof, not a guess (contract C5). The keys and values of a block depend on all tokens before it
and on everything that computed them. So its key is the whole chain: schema, KV envelope, tenant,
conditioning, parent, token ids, hashed with SHA-256. The digest only finds candidates. Then every field of
the key is compared, the parent by identity. So the cache is correct even with a constant hash function.

The cache owns its blocks, as a sequence does. A block that only the cache owns is *unused*: it can be found
until its memory is needed. The least recently used block is evicted first. A sequence frees its last block
first, so a child block is always evicted before its parent.

Paper: Kwon et al. (SOSP 2023), section 4.4; Zheng et al., "SGLang" (arXiv 2312.07104), whose radix tree
shares partial blocks too. Left out: that, and blocks that outlive the process.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minillm.memory.block_pool import BlockPool

SCHEMA = 1
HashFunction = Callable[[bytes], bytes]


class Scope(NamedTuple):
    """The part of the key that all blocks of one tree share. Blocks are shared only within equal scopes."""

    envelope: str
    tenant: str | None = None
    conditioning: str = ""


@dataclass(eq=False, slots=True, repr=False)
class CachedBlock:
    """A full block and everything its content depends on. Compared by identity; the repr shows no content.

    `draft`: the KV envelope of the draft model, if the block also holds that model's keys and values.
    """

    block_id: int
    scope: Scope
    parent: CachedBlock | None
    token_ids: tuple[int, ...]
    digest: bytes
    draft: str | None = None


def sha256(data: bytes) -> bytes:
    """The hash function of the cache."""
    return hashlib.sha256(data).digest()


def encode(*fields: str | bytes | int | Sequence[int] | None) -> bytes:
    """Encode fields as bytes, each with its type and its length, so that different fields never collide.

    A list and a tuple of the same ids are equal fields, and equal fields have equal bytes in every run. From
    the bytes the fields could be decoded again, so a hash is no encoding. Ids go up to 2**31.
    """
    parts = []
    for field in fields:
        if field is None:
            tag, payload = b"n", b""
        elif isinstance(field, str):
            tag, payload = b"s", field.encode()
        elif isinstance(field, bytes):
            tag, payload = b"b", field
        elif isinstance(field, int):
            tag, payload = b"i", str(field).encode()
        else:
            tag, payload = b"l", b"".join(i.to_bytes(8, "little") for i in field)
        parts += [tag, len(payload).to_bytes(8, "little"), payload]
    return b"".join(parts)


class PrefixCache:
    """Full blocks by content; it owns one reference to each. `publish` adds a block, `match` finds blocks."""

    def __init__(self, pool: BlockPool, hash_function: HashFunction = sha256) -> None:
        self._pool, self._hash = pool, hash_function
        self._index: dict[bytes, list[CachedBlock]] = {}  # digest -> all cached blocks that have it
        self._by_block: dict[int, CachedBlock] = {}  # block id -> block
        self._unused: OrderedDict[int, CachedBlock] = OrderedDict()  # the least recently used first
        self.false_matches = 0  # candidates with the right digest but a different key

    @property
    def num_blocks(self) -> int:
        """Blocks in the cache."""
        return len(self._by_block)

    @property
    def num_unused(self) -> int:
        """Blocks that only the cache owns: they can be evicted."""
        return len(self._unused)

    def num_unused_of(self, tenant: str | None) -> int:
        """Unused blocks of one tenant. Looks at all of them."""
        return sum(block.scope.tenant == tenant for block in self._unused.values())

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        """The digest of the block with `token_ids` that follows the block with digest `parent`.

        The key consists of SCHEMA (the version of the format), every field of the scope, the parent (None
        for a first block) and the ids. It is encoded and hashed with the cache's own hash function.
        """
        return self._hash(encode(SCHEMA, *scope, parent, token_ids))

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        """Find the longest chain of cached blocks with these (digest, token ids). No owner is added.

        A block is searched with the block before it as its parent. The search ends at the first block that
        is not found. The ids may be in any sequence; those of cached blocks are tuples.
        """
        found: list[CachedBlock] = []
        for digest, token_ids in blocks:
            block = self._find(digest, scope, found[-1] if found else None, tuple(token_ids))
            if block is None:
                break
            found.append(block)
        return found

    def acquire(self, blocks: Sequence[CachedBlock]) -> list[int]:
        """Make the caller an owner of matched blocks; return their ids."""
        ids = [block.block_id for block in blocks]
        self._pool.share(ids)
        for block_id in ids:
            self._unused.pop(block_id, None)
        return ids

    def is_unused(self, block: CachedBlock) -> bool:
        """Whether only the cache owns the block."""
        return block.block_id in self._unused

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        """Add a written, full block to the cache.

        The cache becomes an owner of the block, and finds it in `_by_block` and in its digest's list in
        `_index`, beside other blocks with that digest. It keeps the ids in a tuple: the caller's list may
        change. If the same content is already cached, nothing is added.

        Returns:
            The block the caller must use from now on. If the same content is already cached, this is the
            older copy: the caller must acquire it and free its own.
        """
        known = self._find(digest, scope, parent, tuple(token_ids))
        if known is not None:
            return known
        block = CachedBlock(block_id, scope, parent, tuple(token_ids), digest)
        self._pool.share([block_id])
        self._index.setdefault(digest, []).append(block)
        self._by_block[block_id] = block
        return block

    def released(self, block_ids: Sequence[int]) -> None:
        """Called after a sequence has freed `block_ids`: blocks that only the cache owns become unused.

        The last block of the list becomes unused first, so it is evicted first, and never after its parent.
        Blocks that are not in the cache are left alone. `block_ids` is the caller's and does not change.
        """
        for block_id in reversed(block_ids):
            block = self._by_block.get(block_id)
            if block is not None and self._pool.ref_count(block_id) == 1:
                self._unused[block_id] = block

    def evict(self, count: int) -> int:
        """Free up to `count` unused blocks, the least recently used first; return the number freed.

        An evicted block is in no collection any more, and its digest's list is removed when it is empty.
        """
        evicted = min(count, len(self._unused))
        for _ in range(evicted):
            block_id, block = self._unused.popitem(last=False)
            del self._by_block[block_id]
            bucket = self._index[block.digest]
            bucket.remove(block)
            if not bucket:
                del self._index[block.digest]
            self._pool.free([block_id])
        return evicted

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        """Find the block with exactly this key: equal scope, equal token ids, and the same parent object.

        Any other block with the digest that is looked at on the way is counted in `false_matches`.
        """
        for block in self._index.get(digest, ()):
            if block.scope == scope and block.parent is parent and block.token_ids == token_ids:
                return block
            self.false_matches += 1
        return None
