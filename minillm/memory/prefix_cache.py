r"""The prefix cache: a full block whose content is already known need not be computed again.

    prompt of a   [ t0 .. t15 ][ t16 .. t31 ][ t32 .. ]      a computed it and published two full blocks
    prompt of b   [ t0 .. t15 ][ t16 .. t31 ][ u32 .. ]      b takes them as they are, computes from 32 on

    root --- block 5 (t0..15) --- block 2 (t16..31) --- block 9 (t32..47)
                              \-- block 7 (v16..31)                          one tree for each scope

A hit is a proof, not a guess (contract C5). A block's keys and values depend on everything before it
and on what computed them, so its key is the whole chain: schema, KV envelope, tenant, conditioning,
parent, token ids, under SHA-256. The digest only finds candidates: every field of the key is then
compared, the parent by identity, so the cache is right even if the hash function is constant.

The cache is an owner of its blocks, like a sequence. A block that nobody else owns is *unused*: it
stays findable until its memory is needed, least recently used first. Sequences give their blocks
back last block first, so children always go before their parents.

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
    """Who may share: equal in every field, or nothing is shared."""

    envelope: str
    tenant: str | None = None
    conditioning: str = ""


@dataclass(eq=False, slots=True)
class CachedBlock:
    """A full block and everything its content depends on. Compared by identity.

    `draft` names the draft model whose keys and values it holds too; without one, none.
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
    """Fields as bytes that no other fields have: each with its type and its length."""
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
    """Full blocks by content. It owns one reference on each; `match` and `publish` are all it is for."""

    def __init__(self, pool: BlockPool, hash_function: HashFunction = sha256) -> None:
        self._pool, self._hash = pool, hash_function
        self._index: dict[bytes, list[CachedBlock]] = {}
        self._by_block: dict[int, CachedBlock] = {}
        self._unused: OrderedDict[int, CachedBlock] = OrderedDict()  # the least recently used first
        self.false_matches = 0  # candidates with the right digest and another key

    @property
    def num_blocks(self) -> int:
        """Blocks that can be found."""
        return len(self._by_block)

    @property
    def num_unused(self) -> int:
        """Blocks that only the cache owns: they can be had."""
        return len(self._unused)

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        """The digest of a block behind the block whose digest is `parent`."""
        return self._hash(encode(SCHEMA, *scope, parent, token_ids))

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        """The longest chain of cached blocks with these (digest, token ids). Nothing changes owner."""
        found: list[CachedBlock] = []
        for digest, token_ids in blocks:
            block = self._find(digest, scope, found[-1] if found else None, tuple(token_ids))
            if block is None:
                break
            found.append(block)
        return found

    def acquire(self, blocks: Sequence[CachedBlock]) -> list[int]:
        """Make the caller an owner of matched blocks; returns their ids."""
        ids = [block.block_id for block in blocks]
        self._pool.share(ids)
        for block_id in ids:
            self._unused.pop(block_id, None)
        return ids

    def is_unused(self, block: CachedBlock) -> bool:
        """Whether only the cache owns it."""
        return block.block_id in self._unused

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        """Make a written, full block findable.

        Returns:
            The block to use from now on: where the same content is cached already that is the older
            copy, and the caller should take it and give its own back.
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
        """Told after a sequence has given back `block_ids`: those nobody else owns become unused."""
        for block_id in reversed(block_ids):
            block = self._by_block.get(block_id)
            if block is not None and self._pool.ref_count(block_id) == 1:
                self._unused[block_id] = block

    def evict(self, count: int) -> int:
        """Give back up to `count` unused blocks to the pool, the least recently used first."""
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
        """The block with exactly this key; every other one with its digest is a false match."""
        for block in self._index.get(digest, ()):
            if block.scope == scope and block.parent is parent and block.token_ids == token_ids:
                return block
            self.false_matches += 1
        return None
