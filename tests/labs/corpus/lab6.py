"""Lab 6: one-line mistakes in the finished file, and the diagnosis of each."""

from corpus.variants import Slip

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
