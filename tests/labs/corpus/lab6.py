"""Lab 6: wrong solutions with their diagnoses, and odd but right ones."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "no lengths",
        'parts += [tag, len(payload).to_bytes(8, "little"), payload]',
        "parts += [tag, payload]",
        {"6.1": "a separator or a tag can also occur"},
    ),
    Slip("no types", "parts += [tag, len", "parts += [len", {"6.1": "fields have no type"}),
    Slip(
        "ids of 16 bits",
        'i.to_bytes(8, "little") for i in field',
        '(i % 65536).to_bytes(8, "little") for i in field',
        {"6.1": "ids are cut to 16 bits"},
    ),
    Slip(
        "no chain",
        "encode(SCHEMA, *scope, parent, token_ids)",
        "encode(SCHEMA, *scope, None, token_ids)",
        {"6.2": "the parent is missing"},
    ),
    Slip(
        "no scope",
        "encode(SCHEMA, *scope, parent, token_ids)",
        "encode(SCHEMA, parent, token_ids)",
        {"6.2": "the scope is missing"},
    ),
    Slip(
        "the hash is trusted",
        "            if block.scope == scope and block.parent is parent and block.token_ids == token_ids:",
        "            if block:",
        {"6.3": "the hash is trusted"},
    ),
    Slip("tenants share", "if block.scope == scope and ", "if ", {"6.3": "the scope is not compared"}),
    Slip(
        "the parent by its digest",
        "and block.parent is parent and",
        'and getattr(block.parent, "digest", 0) == getattr(parent, "digest", 0) and',
        {"6.3": "compare its identity"},
    ),
    Slip("silent", "self.false_matches += 1", "pass", {"6.3": "false matches are not counted"}),
    Slip(
        "no parents",
        "self._find(digest, scope, found[-1] if found else None, tuple(token_ids))",
        "self._find(digest, scope, None, tuple(token_ids))",
        {"6.4": "without its parent"},
    ),
    Slip(
        "a list is no tuple",
        "found[-1] if found else None, tuple(token_ids))",
        "found[-1] if found else None, token_ids)",
        {"6.4": "convert it to a tuple"},
    ),
    Slip(
        "match takes",
        "            found.append(block)\n        return found\n",
        "            found.append(block)\n        self.acquire(found)\n        return found\n",
        {"6.4": "the caller becomes an owner"},
    ),
    Slip("no owner", "        self._pool.share([block_id])\n", "", {"6.5": "the cache is not an owner"}),
    Slip(
        "published twice",
        "        if known is not None:\n            return known\n",
        "",
        {"6.5": "published again"},
    ),
    Slip(
        "one block for a digest",
        "self._index.setdefault(digest, []).append(block)",
        "self._index[digest] = [block]",
        {"6.5": "a block with the same digest is replaced"},
    ),
    Slip(
        "parents before children",
        "for block_id in reversed(block_ids):",
        "for block_id in block_ids:",
        {"6.6": "parents are evicted before children"},
    ),
    Slip(
        "read and unused",
        "if block is not None and self._pool.ref_count(block_id) == 1:",
        "if block is not None:",
        {"6.6": "while a sequence still uses it"},
    ),
    Slip(
        "every block is known",
        "block = self._by_block.get(block_id)\n",
        "block = self._by_block[block_id]\n",
        {"6.6": "not every block is in the cache"},
    ),
    Slip(
        "the newest evicted",
        "popitem(last=False)",
        "popitem()",
        {"6.7": "the most recently used block is evicted"},
    ),
    Slip("findable for ever", "            bucket.remove(block)\n", "", {"6.7": "can still be found"}),
    Slip(
        "the bucket emptied",
        "            if not bucket:\n                del",
        "            if True:\n                del",
        {"6.7": "all blocks with the same digest are removed"},
    ),
    Slip(
        "the pool not told", "            self._pool.free([block_id])\n", "", {"6.7": "not freed in the pool"}
    ),
]


def method(name: str, body: str) -> str:
    """Code that defines a method of the cache again."""
    return f"{body}\n\nPrefixCache.{name} = {name}\n"


REWRITES = [
    # --- 6.1, wrong
    Rewrite(
        "digits of ids",
        "def encode(*fields):\n"
        "    out = b''\n"
        "    for f in fields:\n"
        "        is_ids = isinstance(f, list | tuple)\n"
        "        text = ''.join(map(str, f)) if is_ids else '' if f is None else f\n"
        "        data = text if isinstance(text, bytes) else str(text).encode()\n"
        "        kind = 'ids' if is_ids else type(f).__name__\n"
        "        out += f'{kind} {len(data)} '.encode() + data\n"
        "    return out\n",
        {"6.1": "the ids of a list have no border"},
    ),
    Rewrite(
        "ids of one byte",
        "def encode(*fields):\n"
        "    out = b''\n"
        "    for f in fields:\n"
        "        is_ids = isinstance(f, list | tuple)\n"
        "        data = bytes(f) if is_ids else f if isinstance(f, bytes) else str(f).encode()\n"
        "        kind = 'ids' if is_ids else type(f).__name__\n"
        "        out += f'{kind} {len(data)} '.encode() + data\n"
        "    return out\n",
        {"6.1": "ids are written in one byte each"},
    ),
    Rewrite(
        "SHA-256 of the text",
        "def encode(*fields):\n"
        "    import hashlib\n"
        "    plain = [tuple(f) if isinstance(f, list) else f for f in fields]\n"
        "    return hashlib.sha256(repr(plain).encode()).digest()\n",
        {"6.1": "a hash is not an encoding"},
    ),
    Rewrite(
        "salted",
        "def encode(*fields):\n"
        "    plain = tuple(tuple(f) if isinstance(f, list) else f for f in fields)\n"
        "    return str(hash(plain)).encode()\n",
        {"6.1": "Python's `hash` is not an encoding"},
    ),
    Rewrite(
        "repr as it is",
        "def encode(*fields):\n    return repr(fields).encode()\n",
        {"6.1": "the type of sequence"},
    ),
    Rewrite(
        "only str",
        "def encode(*fields):\n"
        "    return '|'.join(str(list(f) if isinstance(f, tuple) else f) for f in fields).encode()\n",
        {"6.1": "text, bytes and numbers look alike"},
    ),
    Rewrite(
        "pickled",
        "def encode(*fields):\n"
        "    import pickle\n"
        "    return pickle.dumps([list(f) if isinstance(f, tuple) else f for f in fields])\n",
        {"6.1": "pickle writes which fields are one object"},
    ),
    # --- 6.1, odd but right
    Rewrite(
        "repr of tuples",
        "def encode(*fields):\n"
        "    return repr([tuple(f) if isinstance(f, list) else f for f in fields]).encode()\n",
    ),
    Rewrite(
        "JSON with types",
        "def encode(*fields):\n"
        "    import json\n"
        "    def show(f):\n"
        "        if isinstance(f, bytes):\n"
        "            return ['bytes', f.hex()]\n"
        "        is_plain = f is None or isinstance(f, str | int)\n"
        "        return [type(f).__name__, f] if is_plain else ['ids', list(f)]\n"
        "    return json.dumps([show(f) for f in fields]).encode()\n",
    ),
    Rewrite(
        "struct and a bytearray",
        "def encode(*fields):\n"
        "    import struct\n"
        "    out = bytearray(struct.pack('<I', len(fields)))\n"
        "    for f in fields:\n"
        "        match f:\n"
        "            case None: kind, data = 0, b''\n"
        "            case str(): kind, data = 1, f.encode('utf-16-le')\n"
        "            case bytes(): kind, data = 2, f\n"
        "            case int(): kind, data = 3, struct.pack('<q', f)\n"
        "            case _: kind, data = 4, struct.pack(f'<{len(f)}I', *f)\n"
        "        out += struct.pack('<BI', kind, len(data)) + data\n"
        "    return bytes(out)\n",
    ),
    # --- 6.2, wrong
    Rewrite(
        "an f-string",
        method(
            "digest",
            "def digest(self, scope, parent, token_ids):\n"
            "    scope = f'{scope.envelope}{scope.tenant}{scope.conditioning}'\n"
            "    return self._hash(f'{SCHEMA}{scope}{parent}{list(token_ids)}'.encode())\n",
        ),
        {"6.2": "the scope is joined to one text"},
    ),
    Rewrite(
        "no tenant",
        method(
            "digest",
            "def digest(self, scope, parent, token_ids):\n"
            "    key = encode(SCHEMA, scope.envelope, scope.conditioning, parent, token_ids)\n"
            "    return self._hash(key)\n",
        ),
        {"6.2": "the tenant is missing"},
    ),
    Rewrite(
        "no conditioning",
        method(
            "digest",
            "def digest(self, scope, parent, token_ids):\n"
            "    return self._hash(encode(SCHEMA, scope.envelope, scope.tenant, parent, token_ids))\n",
        ),
        {"6.2": "the conditioning is missing"},
    ),
    Rewrite(
        "another hash",
        method(
            "digest",
            "def digest(self, scope, parent, token_ids):\n"
            "    import hashlib\n"
            "    return hashlib.md5(encode(SCHEMA, *scope, parent, token_ids)).digest()\n",
        ),
        {"6.2": "the hash function given to the cache is not used"},
    ),
    Rewrite(
        "the whole prefix again",
        method(
            "digest",
            "def digest(self, scope, parent, token_ids):\n"
            "    chains = self.__dict__.setdefault('chains', {})\n"
            "    chain = chains.get((scope, parent), []) + [list(token_ids)]\n"
            "    made = self._hash(encode(SCHEMA, *scope, parent, [i for ids in chain for i in ids]))\n"
            "    chains[scope, made] = chain\n"
            "    return made\n",
        ),
        {"6.2": "the whole text is hashed for each block"},
    ),
    # --- 6.2, odd but right
    Rewrite(
        "fields in another order",
        method(
            "digest",
            "def digest(self, scope, parent, token_ids):\n"
            "    return self._hash(encode(token_ids, parent, *reversed(scope), SCHEMA))\n",
        ),
    ),
    Rewrite(
        "the scope hashed first",
        method(
            "digest",
            "def digest(self, scope, parent, token_ids):\n"
            "    root = self._hash(encode(SCHEMA, *scope))\n"
            "    return self._hash(encode(root, parent, list(token_ids)))\n",
        ),
    ),
    Rewrite(
        "joined encodings",
        method(
            "digest",
            "def digest(self, scope, parent, token_ids):\n"
            "    tenant = encode(scope.envelope, scope.tenant, scope.conditioning)\n"
            "    tokens = encode(parent) + encode(tuple(token_ids))\n"
            "    return self._hash(encode('v', str(SCHEMA)) + tenant + tokens)\n",
        ),
    ),
    # --- 6.3, wrong
    Rewrite(
        "no tenant compared",
        method(
            "_find",
            "def _find(self, digest, scope, parent, token_ids):\n"
            "    for b in self._index.get(digest, []):\n"
            "        alike = b.scope[0] == scope[0] and b.scope.conditioning == scope.conditioning\n"
            "        if alike and b.parent is parent and b.token_ids == token_ids:\n"
            "            return b\n"
            "        self.false_matches += 1\n"
            "    return None\n",
        ),
        {"6.3": "the tenant is not compared"},
    ),
    Rewrite(
        "all blocks searched",
        method(
            "_find",
            "def _find(self, digest, scope, parent, token_ids):\n"
            "    for b in self._by_block.values():\n"
            "        if b.digest == digest:\n"
            "            if (b.scope, b.token_ids) == (scope, token_ids) and b.parent is parent:\n"
            "                return b\n"
            "            self.false_matches += 1\n"
            "    return None\n",
        ),
        {"6.3": "every block of the cache is looked at"},
    ),
    Rewrite(
        "the first candidate",
        method(
            "_find",
            "def _find(self, digest, scope, parent, token_ids):\n"
            "    bucket = self._index.get(digest)\n"
            "    if not bucket:\n"
            "        return None\n"
            "    b = bucket[0]\n"
            "    if b.scope == scope and b.parent is parent and b.token_ids == token_ids:\n"
            "        return b\n"
            "    self.false_matches += 1\n"
            "    return None\n",
        ),
        {"6.3": "the search stops at the first wrong candidate"},
    ),
    # --- 6.3, odd but right
    Rewrite(
        "from the last candidate",
        method(
            "_find",
            "def _find(self, digest, scope, parent, token_ids):\n"
            "    for b in reversed(self._index.get(digest, [])):\n"
            "        if b.parent is parent and (b.token_ids, b.scope) == (token_ids, scope):\n"
            "            return b\n"
            "        self.false_matches += 1\n",
        ),
    ),
    Rewrite(
        "a list of those that fit",
        method(
            "_find",
            "def _find(self, digest, scope, parent, token_ids):\n"
            "    bucket = self._index[digest] if digest in self._index else []\n"
            "    fits = [b for b in bucket if b.token_ids == tuple(token_ids) and b.scope == scope\n"
            "            and b.parent is parent]\n"
            "    self.false_matches += len(bucket) - len(fits)\n"
            "    return fits[0] if fits else None\n",
        ),
    ),
    Rewrite(
        "one comparison of tuples",
        method(
            "_find",
            "def _find(self, digest, scope, parent, token_ids):\n"
            "    def key(scope, parent, ids):\n"
            "        return (*scope, id(parent), *ids)\n"
            "    for b in self._index.get(digest, ()):\n"
            "        if key(b.scope, b.parent, b.token_ids) == key(scope, parent, token_ids):\n"
            "            return b\n"
            "        self.false_matches = self.false_matches + 1\n"
            "    return None\n",
        ),
    ),
    # --- 6.4, wrong
    Rewrite(
        "the digest is enough",
        method(
            "match",
            "def match(self, scope, blocks):\n"
            "    found = []\n"
            "    for digest, token_ids in blocks:\n"
            "        if digest not in self._index:\n"
            "            break\n"
            "        found.append(self._index[digest][0])\n"
            "    return found\n",
        ),
        {"6.4": "the digest is trusted"},
    ),
    Rewrite(
        "goes on after a miss",
        method(
            "match",
            "def match(self, scope, blocks):\n"
            "    found = []\n"
            "    for digest, token_ids in blocks:\n"
            "        block = self._find(digest, scope, found[-1] if found else None, tuple(token_ids))\n"
            "        if block:\n"
            "            found.append(block)\n"
            "    return found\n",
        ),
        {"6.4": "goes on after a block that is not found"},
    ),
    Rewrite(
        "quadratic",
        method(
            "match",
            "def match(self, scope, blocks):\n"
            "    keys = [(d, tuple(t)) for d, t in blocks]\n"
            "    best = []\n"
            "    for end in range(1, len(keys) + 1):\n"
            "        chain = []\n"
            "        for digest, ids in keys[:end]:\n"
            "            block = self._find(digest, scope, chain[-1] if chain else None, ids)\n"
            "            if block is None:\n"
            "                return best\n"
            "            chain.append(block)\n"
            "        best = chain\n"
            "    return best\n",
        ),
        {"6.4": "searched from its beginning for each block"},
    ),
    # --- 6.4, odd but right
    Rewrite(
        "recursive",
        method(
            "match",
            "def match(self, scope, blocks):\n"
            "    keys = iter(blocks)\n"
            "    def after(parent):\n"
            "        for digest, ids in keys:\n"
            "            block = self._find(digest, scope, parent, tuple(ids))\n"
            "            return [] if block is None else [block, *after(block)]\n"
            "        return []\n"
            "    return after(None)\n",
        ),
    ),
    Rewrite(
        "a while loop",
        method(
            "match",
            "def match(self, scope, blocks):\n"
            "    keys, found, parent, i = list(blocks), [], None, 0\n"
            "    while i < len(keys):\n"
            "        digest, ids = keys[i]\n"
            "        parent = self._find(digest, scope, parent, tuple(ids))\n"
            "        if parent is None:\n"
            "            return found\n"
            "        found, i = found + [parent], i + 1\n"
            "    return found\n",
        ),
    ),
    Rewrite(
        "a generator",
        method(
            "match",
            "def chain_of(self, scope, blocks):\n"
            "    parent = None\n"
            "    for digest, ids in blocks:\n"
            "        if (parent := self._find(digest, scope, parent, tuple(ids))) is None:\n"
            "            return\n"
            "        yield parent\n\n"
            "def match(self, scope, blocks):\n"
            "    return [*chain_of(self, scope, blocks)]\n",
        ),
    ),
    # --- 6.5, wrong
    Rewrite(
        "the caller's list",
        method(
            "publish",
            "def publish(self, scope, parent, token_ids, digest, block_id):\n"
            "    known = self._find(digest, scope, parent, tuple(token_ids))\n"
            "    if known is not None:\n"
            "        return known\n"
            "    block = CachedBlock(block_id, scope, parent, token_ids, digest)\n"
            "    self._pool.share([block_id])\n"
            "    self._index.setdefault(digest, []).append(block)\n"
            "    self._by_block[block_id] = block\n"
            "    return block\n",
        ),
        {"6.5": "the caller's list of ids is stored"},
    ),
    Rewrite(
        "an owner before the search",
        method(
            "publish",
            "def publish(self, scope, parent, token_ids, digest, block_id):\n"
            "    self._pool.share([block_id])\n"
            "    known = self._find(digest, scope, parent, tuple(token_ids))\n"
            "    if known is not None:\n"
            "        return known\n"
            "    block = CachedBlock(block_id, scope, parent, tuple(token_ids), digest)\n"
            "    self._index.setdefault(digest, []).append(block)\n"
            "    self._by_block[block_id] = block\n"
            "    return block\n",
        ),
        {"6.5": "although it is not published"},
    ),
    Rewrite(
        "any block with the digest",
        method(
            "publish",
            "def publish(self, scope, parent, token_ids, digest, block_id):\n"
            "    if self._index.get(digest):\n"
            "        return self._index[digest][0]\n"
            "    block = CachedBlock(block_id, scope, parent, tuple(token_ids), digest)\n"
            "    self._pool.share([block_id])\n"
            "    self._index[digest] = [block]\n"
            "    self._by_block[block_id] = block\n"
            "    return block\n",
        ),
        {"6.5": "the digest is trusted"},
    ),
    Rewrite(
        "its own copy again",
        method(
            "publish",
            "def publish(self, scope, parent, token_ids, digest, block_id):\n"
            "    block = CachedBlock(block_id, scope, parent, tuple(token_ids), digest)\n"
            "    if self._find(digest, scope, parent, block.token_ids) is None:\n"
            "        self._pool.share([block_id])\n"
            "        self._index.setdefault(digest, []).append(block)\n"
            "        self._by_block[block_id] = block\n"
            "    return block\n",
        ),
        {"6.5": "return the older copy, not the caller's"},
    ),
    # --- 6.5, odd but right
    Rewrite(
        "keywords",
        method(
            "publish",
            "def publish(self, scope, parent, token_ids, digest, block_id):\n"
            "    ids = tuple(token_ids)\n"
            "    if not (block := self._find(digest, scope, parent, ids)):\n"
            "        block = CachedBlock(\n"
            "            block_id=block_id, scope=scope, parent=parent, token_ids=ids, digest=digest\n"
            "        )\n"
            "        self._by_block[block_id] = block\n"
            "        self._index[digest] = [*self._index.get(digest, []), block]\n"
            "        self._pool.share((block_id,))\n"
            "    return block\n",
        ),
    ),
    Rewrite(
        "the newest first in its list",
        method(
            "publish",
            "def publish(self, scope, parent, token_ids, digest, block_id):\n"
            "    older = self._find(digest, scope, parent, tuple(token_ids))\n"
            "    if older is not None:\n"
            "        return older\n"
            "    self._pool.share([block_id])\n"
            "    made = CachedBlock(block_id, scope, parent, tuple(token_ids), digest)\n"
            "    self._by_block[block_id] = made\n"
            "    if digest not in self._index:\n"
            "        self._index[digest] = []\n"
            "    self._index[digest].insert(0, made)\n"
            "    return made\n",
        ),
    ),
    Rewrite(
        "two helpers",
        method(
            "publish",
            "def store(self, block):\n"
            "    self._pool.share([block.block_id])\n"
            "    self._by_block.update({block.block_id: block})\n"
            "    self._index.setdefault(block.digest, []).append(block)\n"
            "    return block\n\n"
            "def publish(self, scope, parent, token_ids, digest, block_id):\n"
            "    new = CachedBlock(block_id, scope, parent, tuple(token_ids), digest)\n"
            "    return self._find(digest, scope, parent, new.token_ids) or store(self, new)\n",
        ),
    ),
    # --- 6.6, wrong
    Rewrite(
        "the caller's list reversed",
        method(
            "released",
            "def released(self, block_ids):\n"
            "    if isinstance(block_ids, list):\n"
            "        block_ids.reverse()\n"
            "    for block_id in block_ids:\n"
            "        if block_id in self._by_block and self._pool.ref_count(block_id) == 1:\n"
            "            self._unused[block_id] = self._by_block[block_id]\n",
        ),
        {"6.6": "it is not yours to change"},
    ),
    Rewrite(
        "sorted by id",
        method(
            "released",
            "def released(self, block_ids):\n"
            "    for block_id in sorted(block_ids, reverse=True):\n"
            "        block = self._by_block.get(block_id)\n"
            "        if block and self._pool.ref_count(block_id) == 1:\n"
            "            self._unused[block_id] = block\n",
        ),
        {"6.6": "the order is that of the block ids"},
    ),
    Rewrite(
        "freed at once",
        method(
            "released",
            "def released(self, block_ids):\n"
            "    for block_id in reversed(block_ids):\n"
            "        block = self._by_block.get(block_id)\n"
            "        if block and self._pool.ref_count(block_id) == 1:\n"
            "            self._unused[block_id] = block\n"
            "            self._pool.free([block_id])\n",
        ),
        {"6.6": "the block is freed"},
    ),
    # --- 6.6, odd but right
    Rewrite(
        "indices from the end",
        method(
            "released",
            "def released(self, block_ids):\n"
            "    for i in range(len(block_ids) - 1, -1, -1):\n"
            "        if self._pool.ref_count(block_ids[i]) == 1 and block_ids[i] in self._by_block:\n"
            "            self._unused[block_ids[i]] = self._by_block[block_ids[i]]\n",
        ),
    ),
    Rewrite(
        "one update",
        method(
            "released",
            "def released(self, block_ids):\n"
            "    mine = [b for b in block_ids if b in self._by_block and self._pool.ref_count(b) < 2]\n"
            "    self._unused.update({b: self._by_block[b] for b in mine[::-1]})\n",
        ),
    ),
    Rewrite(
        "a copy used up",
        method(
            "released",
            "def released(self, block_ids):\n"
            "    left = list(block_ids)\n"
            "    while left:\n"
            "        block = self._by_block.get(left.pop())\n"
            "        if block is None or self._pool.ref_count(block.block_id) != 1:\n"
            "            continue\n"
            "        self._unused[block.block_id] = block\n"
            "        self._unused.move_to_end(block.block_id)\n",
        ),
    ),
    # --- 6.7, wrong
    Rewrite(
        "used blocks too",
        method(
            "evict",
            "def evict(self, count):\n"
            "    n = min(count, len(self._by_block))\n"
            "    for _ in range(n):\n"
            "        block = next(iter(self._unused.values() if self._unused else self._by_block.values()))\n"
            "        self._unused.pop(block.block_id, None)\n"
            "        del self._by_block[block.block_id]\n"
            "        self._index[block.digest].remove(block)\n"
            "        if not self._index[block.digest]:\n"
            "            del self._index[block.digest]\n"
            "        self._pool.free([block.block_id])\n"
            "    return n\n",
        ),
        {"6.7": "blocks that a sequence uses are evicted"},
    ),
    Rewrite(
        "in the order of publishing",
        method(
            "evict",
            "def evict(self, count):\n"
            "    old = [b for b in self._by_block.values() if b.block_id in self._unused][:count]\n"
            "    for block in old:\n"
            "        del self._unused[block.block_id], self._by_block[block.block_id]\n"
            "        self._index[block.digest].remove(block)\n"
            "        if not self._index[block.digest]:\n"
            "            del self._index[block.digest]\n"
            "        self._pool.free([block.block_id])\n"
            "    return len(old)\n",
        ),
        {"6.7": "the block that was published first is evicted"},
    ),
    Rewrite(
        "empty lists stay",
        method(
            "evict",
            "def evict(self, count):\n"
            "    n = 0\n"
            "    while n < count and self._unused:\n"
            "        block_id, block = self._unused.popitem(last=False)\n"
            "        del self._by_block[block_id]\n"
            "        self._index[block.digest].remove(block)\n"
            "        self._pool.free([block_id])\n"
            "        n += 1\n"
            "    return n\n",
        ),
        {"6.7": "empty lists stay in the index"},
    ),
    # --- 6.7, odd but right
    Rewrite(
        "a list of the oldest",
        method(
            "evict",
            "def evict(self, count):\n"
            "    oldest = list(self._unused.values())[:count]\n"
            "    for block in oldest:\n"
            "        left = [b for b in self._index.pop(block.digest) if b is not block]\n"
            "        if left:\n"
            "            self._index[block.digest] = left\n"
            "        self._by_block.pop(block.block_id)\n"
            "        self._unused.pop(block.block_id)\n"
            "    self._pool.free([block.block_id for block in oldest])\n"
            "    return len(oldest)\n",
        ),
    ),
    Rewrite(
        "a while loop that counts down",
        method(
            "evict",
            "def evict(self, count):\n"
            "    before = self._pool.num_free\n"
            "    while count > 0 and self._unused:\n"
            "        block = self._unused.pop(next(iter(self._unused)))\n"
            "        self._pool.free([self._by_block.pop(block.block_id).block_id])\n"
            "        self._index[block.digest].remove(block)\n"
            "        if self._index[block.digest] == []:\n"
            "            self._index.pop(block.digest)\n"
            "        count -= 1\n"
            "    return self._pool.num_free - before\n",
        ),
    ),
    Rewrite(
        "an error ends the loop",
        method(
            "evict",
            "def evict(self, count):\n"
            "    for number in range(count):\n"
            "        try:\n"
            "            block_id, block = self._unused.popitem(last=False)\n"
            "        except KeyError:\n"
            "            return number\n"
            "        bucket = self._index[block.digest]\n"
            "        del bucket[bucket.index(block)]\n"
            "        if len(bucket) == 0:\n"
            "            del self._index[block.digest]\n"
            "        self._by_block.pop(block_id)\n"
            "        self._pool.free([block_id])\n"
            "    return count\n",
        ),
    ),
]
