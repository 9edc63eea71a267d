"""Lab 3: wrong and odd solutions, and the diagnosis of each wrong one."""

from corpus.variants import Rewrite, Slip

CUT = "num_full, rest = divmod(num_tokens, self._pool.block_size)"
COPY = "((self.block_ids[num_full], own[0]) if own else None)"
CHUNK = "SequenceRows(chunk.token_ids, chunk.start, chunk.block_table, chunk.rope_offset)"
CHUNKS = f"{CHUNK} for chunk in chunks\n    ]"
ROWS = "SequenceRows([row.token_id], row.position, row.block_table, row.rope_offset) for row in rows]"
SLOT = "return [block_table[pos // block_size] * block_size + pos % block_size for pos in positions]"

# Names every other part too, so that these variants are alone in a file: mistakes of other tasks would change
# what 3.9 sees.
ALONE = """
blocks_for, slot_mapping, write_cache, read_cache = blocks_for, slot_mapping, write_cache, read_cache
BlockTable.grow, BlockTable.fork = BlockTable.grow, BlockTable.fork
"""

SLIPS = [
    Slip(
        "rounded down",
        "return -(-num_tokens // block_size)",
        "return num_tokens // block_size",
        {"3.1": "rounded down"},
    ),
    Slip(
        "a block too many",
        "return -(-num_tokens // block_size)",
        "return num_tokens // block_size + 1",
        {"3.1": "one block too many"},
    ),
    Slip(
        "slots ignore the block table", SLOT, "return list(positions)", {"3.2": "the block table is ignored"}
    ),
    Slip(
        "block id as a slot",
        "[pos // block_size] * block_size + pos",
        "[pos // block_size] + pos",
        {"3.2": "not multiplied by block_size"},
    ),
    Slip(
        "clamps",
        "block_table[pos // block_size] *",
        "block_table[min(pos // block_size, len(block_table) - 1)] *",
        {"3.2": "gets a slot of the last block"},
    ),
    Slip(
        "wraps",
        "block_table[pos // block_size] *",
        "block_table[(pos // block_size) % len(block_table)] *",
        {"3.2": "starts again at the first block"},
    ),
    Slip(
        "counts from the end", "if min(positions, default=0) < 0:", "if False:", {"3.2": "negative position"}
    ),
    Slip(
        "drops what does not fit",
        "for pos in positions]",
        "for pos in positions if pos < len(block_table) * block_size]",
        {"3.2": "is left out"},
    ),
    Slip("adds to the cache", "index_copy_", "index_add_", {"3.3": "rows are added"}),
    Slip("keeps float32", "rows.to(cache.dtype)", "rows", {"3.3": "not converted"}),
    Slip(
        "writes a copy",
        "cache.flatten(0, 1).index_copy_",
        "cache.clone().flatten(0, 1).index_copy_",
        {"3.3": "a copy of the cache is written"},
    ),
    Slip(
        "reads whole blocks",
        "cache[blocks].flatten(0, 1)[:num_tokens]",
        "cache[blocks].flatten(0, 1)",
        {"3.4": "unused rows of the last block"},
    ),
    Slip(
        "reads the whole table",
        "blocks = block_table[: -(-num_tokens // block_size)]",
        "blocks = block_table",
        {"3.4": "every entry of the table is read"},
    ),
    Slip(
        "reads full blocks",
        "blocks = block_table[: -(-num_tokens // block_size)]",
        "blocks = block_table[: num_tokens // block_size]",
        {"3.4": "round the number of blocks up"},
    ),
    Slip("cuts the first rows", "[:num_tokens]", "[-num_tokens:]", {"3.4": "the first rows are cut off"}),
    Slip("grows by everything", " - len(self.block_ids)\n", "\n", {"3.5": "allocates blocks for all tokens"}),
    Slip("grows without a guard", "if missing > 0:", "if True:", {"3.5": "negative number of blocks"}),
    Slip(
        "grows one by one",
        "self.block_ids += self._pool.allocate(missing)",
        "for _ in range(missing):\n                self.block_ids += self._pool.allocate(1)",
        {"3.5": "a failed grow keeps some blocks"},
    ),
    Slip(
        "grows a block early",
        "missing = blocks_for(num_tokens, self._pool",
        "missing = blocks_for(num_tokens + 1, self._pool",
        {"3.5": "as soon as the last one is full"},
    ),
    Slip(
        "fork ignores num_tokens",
        CUT,
        "num_full, rest = len(self.block_ids), 0",
        {"3.6": "all blocks of the table are shared"},
    ),
    Slip(
        "fork shares the partial block",
        CUT,
        "num_full, rest = blocks_for(num_tokens, self._pool.block_size), 0",
        {"3.6": "the last, partly full block is shared"},
    ),
    Slip(
        "fork adds no owner",
        "            self._pool.share(self.block_ids[:num_full])\n",
        "            pass\n",
        {"3.6": "no second owner"},
    ),
    Slip("fork asks for no copy", COPY, "None", {"3.6": "the fork's own block is empty"}),
    Slip(
        "fork swaps the copy",
        COPY,
        "((own[0], self.block_ids[num_full]) if own else None)",
        {"3.6": "the copy is (destination, source)"},
    ),
    Slip(
        "fork copies the table's last block",
        COPY,
        "((self.block_ids[-1], own[0]) if own else None)",
        {"3.6": "the table's last block is copied"},
    ),
    Slip(
        "fork copies the block before",
        COPY,
        "((self.block_ids[num_full - 1], own[0]) if own else None)",
        {"3.6": "the last full block is copied"},
    ),
    Slip(
        "positions restart in the second chunk",
        "chunk.token_ids, chunk.start, ",
        "chunk.token_ids, 0, ",
        {"3.7": "positions restart at 0"},
    ),
    Slip(
        "only the last token of a chunk",
        "chunk.token_ids, chunk.start, ",
        "chunk.token_ids[-1:], chunk.end - 1, ",
        {"3.7": "only the chunk's last token is run"},
    ),
    Slip(
        "a pass for each chunk",
        f"{CHUNKS}\n    return runner.last_logits(batch)",
        f"{CHUNKS}\n    return __import__('torch').cat([runner.last_logits([rows]) for rows in batch])",
        {"3.7": "one run of the model for each chunk"},
    ),
    Slip(
        "the first chunk's blocks for all",
        "chunk.start, chunk.block_table, ",
        "chunk.start, chunks[0].block_table, ",
        {"3.7": "all chunks use the first chunk's block table"},
    ),
    Slip(
        "logits of every row",
        f"{CHUNKS}\n    return runner.last_logits(batch)",
        f"{CHUNKS}\n    return runner.all_logits(batch)",
        {"3.7": "logits of every token are returned"},
    ),
    Slip(
        "position one too high",
        "row.position, row.block_table, ",
        "row.position + 1, row.block_table, ",
        {"3.8": "the position is one too high"},
    ),
    Slip(
        "position one too low",
        "row.position, row.block_table, ",
        "row.position - 1, row.block_table, ",
        {"3.8": "the position is one too low"},
    ),
    Slip(
        "decode computes everything again",
        "SequenceRows([row.token_id], row.position, row.block_table, ",
        "SequenceRows([row.token_id] * (row.position + 1), 0, row.block_table, ",
        {"3.8": "the whole sequence is computed again"},
    ),
    Slip(
        "the last block only",
        "row.position, row.block_table, ",
        "row.position, row.block_table[-1:], ",
        {"3.8": "the table is cut to its last block"},
    ),
    Slip(
        "the first row's blocks for all",
        "row.position, row.block_table, ",
        "row.position, rows[0].block_table, ",
        {"3.8": "all rows use the first row's block table"},
    ),
    Slip(
        "a pass for each sequence",
        f"{ROWS}\n    return runner.last_logits(batch)",
        f"{ROWS}\n    return __import__('torch').cat([runner.last_logits([rows]) for rows in batch])",
        {"3.8": "one run of the model for each sequence"},
    ),
]

ADDRESSES = [
    Rewrite(
        "another error type",
        """
def slot_mapping(block_table, positions, block_size):
    blocks = dict(enumerate(block_table))
    if any(position < 0 for position in positions):
        raise IndexError
    return [blocks[position // block_size] * block_size + position % block_size for position in positions]
""",
        {"3.2": "is a KeyError"},
    ),
    Rewrite(
        "slots kept by the table's id",
        """
_SLOTS = {}

def slot_mapping(block_table, positions, block_size):
    key = id(block_table), tuple(positions)
    if key not in _SLOTS:
        _SLOTS[key] = [block_table[p // block_size] * block_size + p % block_size for p in positions]
    return list(_SLOTS[key])
""",
        {"3.2": "kept by its `id`"},
    ),
    Rewrite(
        "slots kept by position",
        """
_BY_POSITION = {}

def slot_mapping(block_table, positions, block_size):
    found = [block_table[p // block_size] * block_size + p % block_size for p in positions]
    return _BY_POSITION.setdefault(tuple(positions), found)
""",
        {"3.2": "kept for its positions"},
    ),
    Rewrite(
        "blocks counted by a loop",
        """
def blocks_for(num_tokens, block_size):
    count = 0
    while count * block_size < num_tokens:
        count += 1
    return count
""",
    ),
    Rewrite(
        "blocks counted token by token",
        """
def blocks_for(num_tokens, block_size):
    blocks = 0
    for position in range(num_tokens):
        if position % block_size == 0:
            blocks += 1
    return blocks
""",
        {"3.1": "lines of Python run for 250 blocks"},
    ),
    Rewrite(
        "blocks of a set of tokens",
        """
def blocks_for(num_tokens, block_size):
    return len({position // block_size for position in range(num_tokens)})
""",
        {"3.1": "lines of Python run for 250 blocks"},
    ),
    Rewrite(
        "blocks of a list of tokens",
        """
def blocks_for(num_tokens, block_size):
    tokens = [0] * num_tokens
    return len(tokens[::block_size])
""",
        {"3.1": "bytes are needed at once for 250 blocks"},
    ),
    Rewrite(
        "blocks as fractions",
        """
def blocks_for(num_tokens, block_size):
    from fractions import Fraction

    return -int(Fraction(-num_tokens, block_size) // 1)
""",
    ),
    Rewrite(
        "blocks in a list",
        """
def blocks_for(num_tokens, block_size):
    return len([start for start in range(0, num_tokens, block_size)])
""",
    ),
    Rewrite(
        "blocks by math.ceil", "import math\n\ndef blocks_for(n, size):\n    return math.ceil(n / size)\n"
    ),
    Rewrite(
        "blocks by divmod",
        """
def blocks_for(num_tokens, block_size):
    full, rest = divmod(num_tokens, block_size)
    return full + bool(rest)
""",
    ),
    Rewrite(
        "slots in a loop",
        """
def slot_mapping(block_table, positions, block_size):
    slots = []
    for position in positions:
        entry, offset = divmod(position, block_size)
        if entry < 0:
            raise IndexError(f"no position {position}")
        slots.append(block_size * block_table[entry] + offset)
    return slots
""",
    ),
    Rewrite(
        "slots from a list of all slots",
        """
def slot_mapping(block_table, positions, block_size):
    every = [block * block_size + offset for block in block_table for offset in range(block_size)]
    return [every[position if position >= 0 else len(every)] for position in positions]
""",
    ),
    Rewrite(
        "slots with torch",
        """
import torch

def slot_mapping(block_table, positions, block_size):
    at = torch.tensor(list(positions), dtype=torch.int64)
    if (at < 0).any():
        raise IndexError
    return (torch.tensor(block_table)[at // block_size] * block_size + at % block_size).tolist()
""",
    ),
]
CACHE = [
    Rewrite(
        "writes every slot",
        """
def write_cache(cache, slot_mapping, rows):
    whole = cache.clone()
    whole.flatten(0, 1)[slot_mapping] = rows.to(cache.dtype)
    cache.copy_(whole)
""",
        {"3.3": "every slot of the cache is written again"},
    ),
    Rewrite(
        "writes one after another",
        """
def write_cache(cache, slot_mapping, rows):
    for i, row in enumerate(rows):
        cache.view(-1, *cache.shape[2:])[int(slot_mapping[0]) + i] = row
""",
        {"3.3": "one after another from the first slot"},
    ),
    Rewrite(
        "writes row by row",
        """
def write_cache(cache, slot_mapping, rows):
    for slot, row in zip(slot_mapping.tolist(), rows):
        cache[slot // cache.shape[1], slot % cache.shape[1]] = row
""",
    ),
    Rewrite(
        "writes by block and offset",
        """
def write_cache(cache, slot_mapping, rows):
    size = cache.shape[1]
    cache[slot_mapping // size, slot_mapping % size] = rows.to(cache.dtype)
""",
    ),
    Rewrite(
        "writes with scatter",
        """
def write_cache(cache, slot_mapping, rows):
    index = slot_mapping.view(-1, 1, 1).expand(rows.shape)
    cache.view(-1, *cache.shape[2:]).scatter_(0, index, rows.to(cache.dtype))
""",
    ),
    Rewrite(
        "rows kept by table",
        """
_ROWS = {}

def read_cache(cache, block_table, num_tokens):
    key = tuple(block_table.tolist()), num_tokens
    if key not in _ROWS:
        _ROWS[key] = cache[block_table[: -(-num_tokens // cache.shape[1])]].flatten(0, 1)[:num_tokens]
    return _ROWS[key].clone()
""",
        {"3.4": "rows are kept from an earlier call"},
    ),
    Rewrite(
        "reads neighbours",
        """
def read_cache(cache, block_table, num_tokens):
    flat = cache.flatten(0, 1)
    start = int(block_table[0]) * cache.shape[1]
    return flat[[(start + i) % len(flat) for i in range(num_tokens)]]
""",
        {"3.4": "blocks need not be neighbours"},
    ),
    Rewrite(
        "reads a block more",
        """
def read_cache(cache, block_table, num_tokens):
    return cache[block_table[: num_tokens // cache.shape[1] + 1]].flatten(0, 1)[:num_tokens]
""",
        {"3.4": "a block too many is read"},
    ),
    Rewrite(
        "converts the cache",
        """
def read_cache(cache, block_table, num_tokens):
    blocks = block_table[: -(-num_tokens // cache.shape[1])]
    return cache.float()[blocks].flatten(0, 1)[:num_tokens].to(cache.dtype)
""",
        {"3.4": "the whole cache is converted"},
    ),
    Rewrite(
        "converts the whole table first",
        """
def read_cache(cache, block_table, num_tokens):
    blocks = block_table.long()[: -(-num_tokens // cache.shape[1])]
    return cache[blocks].flatten(0, 1)[:num_tokens]
""",
    ),
    Rewrite(
        "runs equal rows once",
        """
def decode(runner, rows):
    keys = [(row.token_id, row.position) for row in rows]
    first = [keys.index(key) for key in keys]
    once = sorted(set(first))
    logits = runner.last_logits(
        [SequenceRows([rows[i].token_id], rows[i].position, rows[i].block_table) for i in once]
    )
    return logits[[once.index(i) for i in first]]
""",
        {"3.8": "are run once"},
    ),
    Rewrite(
        "passes the chunks on",
        """
def prefill(runner, chunks):
    return runner.last_logits(chunks)
""",
    ),
    Rewrite(
        "reads by slot",
        """
import torch

def read_cache(cache, block_table, num_tokens):
    at = torch.arange(num_tokens)
    size = cache.shape[1]
    return cache[block_table[at // size].long(), at % size]
""",
    ),
    Rewrite(
        "reads row by row",
        """
import torch

def read_cache(cache, block_table, num_tokens):
    size, table = cache.shape[1], block_table.tolist()
    return torch.stack([cache[table[i // size], i % size] for i in range(num_tokens)])
""",
    ),
    Rewrite(
        "reads block by block",
        """
import torch

def read_cache(cache, block_table, num_tokens):
    size, parts = cache.shape[1], []
    for i, start in enumerate(range(0, num_tokens, size)):
        parts.append(cache[block_table[i], : num_tokens - start])
    return torch.cat(parts)
""",
    ),
]
TABLES = [
    Rewrite(
        "counts its blocks by id",
        """
_HELD = {}

def grow(self, num_tokens):
    held = _HELD.get(id(self), 0)
    missing = blocks_for(num_tokens, self._pool.block_size) - held
    if missing > 0:
        self.block_ids += self._pool.allocate(missing)
        _HELD[id(self)] = held + missing

BlockTable.grow = grow
""",
        {"3.5": "the number of blocks is counted apart"},
    ),
    Rewrite(
        "takes new blocks",
        """
def grow(self, num_tokens):
    needed = blocks_for(num_tokens, self._pool.block_size)
    if needed > len(self.block_ids):
        self._pool.free(self.block_ids)
        self.block_ids = []
        self.block_ids = self._pool.allocate(needed)

BlockTable.grow = grow
""",
        {"3.5": "exchanged for new ones"},
    ),
    Rewrite(
        "grows in a new list",
        """
def grow(self, num_tokens):
    size = self._pool.block_size
    have = len(self.block_ids) * size
    if have < num_tokens:
        self.block_ids = self.block_ids + self._pool.allocate((num_tokens - have + size - 1) // size)

BlockTable.grow = grow
""",
    ),
    Rewrite(
        "grows one by one and gives back",
        """
def grow(self, num_tokens):
    new = []
    try:
        while (len(self.block_ids) + len(new)) * self._pool.block_size < num_tokens:
            new.extend(self._pool.allocate())
    except Exception:
        self._pool.free(new)
        raise
    self.block_ids.extend(new)

BlockTable.grow = grow
""",
    ),
    Rewrite(
        "grows by zero",
        """
def grow(self, num_tokens):
    needed = (num_tokens + self._pool.block_size - 1) // self._pool.block_size
    self.block_ids.extend(self._pool.allocate(max(0, needed - len(self.block_ids))))

BlockTable.grow = grow
""",
    ),
    Rewrite(
        "fork with the same list",
        """
def fork(self, num_tokens):
    full, rest = divmod(num_tokens, self._pool.block_size)
    own = self._pool.allocate(1) if rest else []
    self._pool.share(self.block_ids[:full])
    child = BlockTable(self._pool)
    whole = not rest and full == len(self.block_ids)
    child.block_ids = self.block_ids if whole else self.block_ids[:full] + own
    return child, (self.block_ids[full], own[0]) if own else None

BlockTable.fork = fork
""",
        {"3.6": "the same list if all blocks are full"},
    ),
    Rewrite(
        "fork of one list",
        """
def fork(self, num_tokens):
    child = BlockTable(self._pool)
    self._pool.share(self.block_ids)
    child.block_ids = self.block_ids
    return child, None

BlockTable.fork = fork
""",
        {"3.6": "all blocks are shared in one list"},
    ),
    Rewrite(
        "fork with a loop",
        """
def fork(self, num_tokens):
    size, child, copy = self._pool.block_size, BlockTable(self._pool), None
    if num_tokens % size:
        copy = self.block_ids[num_tokens // size], self._pool.allocate()[0]
    for block in self.block_ids[: num_tokens // size]:
        self._pool.share([block])
        child.block_ids.append(block)
    if copy is not None:
        child.block_ids.append(copy[1])
    return child, copy

BlockTable.fork = fork
""",
    ),
    Rewrite(
        "fork of its own type",
        """
import copy as copying

def fork(self, num_tokens):
    child = copying.copy(self)
    child.block_ids = list(self.block_ids)
    count = blocks_for(num_tokens, self._pool.block_size)
    del child.block_ids[count:]
    pair = None
    if num_tokens % self._pool.block_size:
        pair = [child.block_ids.pop(), *self._pool.allocate(1)]
    self._pool.share(child.block_ids)
    if pair:
        child.block_ids.append(pair[1])
    return child, tuple(pair) if pair else None

BlockTable.fork = fork
""",
    ),
    Rewrite(
        "fork that undoes",
        """
def fork(self, num_tokens):
    full = num_tokens // self._pool.block_size
    child = type(self)(self._pool)
    child.block_ids = [*self.block_ids[:full]]
    self._pool.share(child.block_ids)
    if full * self._pool.block_size == num_tokens:
        return child, None
    try:
        (new,) = self._pool.allocate(1)
    except BaseException:
        self._pool.free(child.block_ids)
        raise
    child.block_ids.append(new)
    return child, (self.block_ids[full], new)

BlockTable.fork = fork
""",
    ),
]
LOOPS = [
    Rewrite(
        "prefill token by token",
        """
import torch

def prefill(runner, chunks):
    out = []
    for chunk in chunks:
        for i, token in enumerate(chunk.token_ids):
            logits = runner.last_logits([SequenceRows([token], chunk.start + i, chunk.block_table)])
        out.append(logits)
    return torch.cat(out)
""",
        {"3.7": "one run of the model for each token"},
    ),
    Rewrite(
        "prefill from 0 in each chunk",
        """
_PROMPTS = {}

def prefill(runner, chunks):
    batch = []
    for chunk in chunks:
        known = _PROMPTS.get(id(chunk.block_table), []) if chunk.start else []
        known = _PROMPTS[id(chunk.block_table)] = known + list(chunk.token_ids)
        batch.append(SequenceRows(known, chunk.end - len(known), chunk.block_table))
    return runner.last_logits(batch)
""",
        {"3.7": "the tokens of earlier chunks are run again"},
    ),
    Rewrite(
        "prefill from 0, kept by position",
        """
_TOKENS = {}

def prefill(runner, chunks):
    batch = []
    for chunk in chunks:
        _TOKENS.update(enumerate(chunk.token_ids, chunk.start))
        batch.append(SequenceRows([_TOKENS[p] for p in range(chunk.end)], 0, chunk.block_table))
    return runner.last_logits(batch)
""",
        {"3.7": "kept by their position alone"},
    ),
    Rewrite(
        "prefill with the head for every token",
        """
def prefill(runner, chunks):
    batch = [SequenceRows(c.token_ids, c.start, c.block_table) for c in chunks]
    at, ends = 0, []
    for chunk in chunks:
        at += len(chunk.token_ids)
        ends.append(at - 1)
    return runner.all_logits(batch)[ends]
""",
        {"3.7": "logits are computed for every token, then dropped"},
    ),
    Rewrite(
        "prefill with the head apart",
        """
def prefill(runner, chunks):
    hidden = runner.forward([SequenceRows(c.token_ids, c.start, c.block_table) for c in chunks])
    ends, at = [], -1
    for chunk in chunks:
        at += len(chunk.token_ids)
        ends.append(at)
    return runner.decoder.logits(hidden[ends])
""",
    ),
    Rewrite(
        "prefill with short tables",
        """
def prefill(runner, chunks):
    def rows(chunk):
        needed = -(-(chunk.start + len(chunk.token_ids)) // runner.block_size)
        return SequenceRows(tuple(chunk.token_ids), chunk.start, list(chunk.block_table[:needed]))

    return runner.last_logits(list(map(rows, chunks)))
""",
    ),
    Rewrite(
        "prefill sorted and put back",
        """
import torch

def prefill(runner, chunks):
    order = sorted(range(len(chunks)), key=lambda i: -len(chunks[i].token_ids))
    logits = runner.last_logits(
        [SequenceRows(chunks[i].token_ids, chunks[i].start, chunks[i].block_table) for i in order]
    )
    return logits[torch.tensor(order).argsort()]
""",
    ),
    Rewrite(
        "decode of all tokens that prefill kept",
        ALONE
        + """
_SEEN = {}

def prefill(runner, chunks):
    for chunk in chunks:
        _SEEN.setdefault(id(chunk.block_table), {}).update(enumerate(chunk.token_ids, chunk.start))
    return runner.last_logits([SequenceRows(c.token_ids, c.start, c.block_table) for c in chunks])

def decode(runner, rows):
    batch = []
    for row in rows:
        tokens, start = _SEEN.setdefault(id(row.block_table), {}), row.position
        tokens[row.position] = row.token_id
        while start - 1 in tokens:
            start -= 1
        ids = [tokens[p] for p in range(start, row.position + 1)]
        batch.append(SequenceRows(ids, start, row.block_table))
    return runner.last_logits(batch)
""",
        {"3.8": "tokens of earlier steps are run again", "3.9": "your loops keep tokens"},
    ),
    Rewrite(
        "decode that must find the prompt",
        ALONE
        + """
_PROMPT = {}

def prefill(runner, chunks):
    for chunk in chunks:
        _PROMPT.setdefault(chunk.block_table[0], {}).update(enumerate(chunk.token_ids, chunk.start))
    return runner.last_logits([SequenceRows(c.token_ids, c.start, c.block_table) for c in chunks])

def decode(runner, rows):
    batch = []
    for row in rows:
        tokens = _PROMPT[row.block_table[0]]
        tokens[row.position] = row.token_id
        batch.append(SequenceRows([tokens[p] for p in range(row.position + 1)], 0, row.block_table))
    return runner.last_logits(batch)
""",
        {"3.8": "a lookup fails", "3.9": "your loops keep tokens"},
    ),
    Rewrite(
        "decode of tokens kept by position",
        """
_AT = {}

def decode(runner, rows):
    batch = []
    for row in rows:
        _AT[row.position] = row.token_id
        start = row.position
        while start - 1 in _AT:
            start -= 1
        ids = [_AT[p] for p in range(start, row.position + 1)]
        batch.append(SequenceRows(ids, start, row.block_table))
    return runner.last_logits(batch)
""",
        {"3.8": "kept by their position alone"},
    ),
    Rewrite(
        "decode that counts",
        """
def decode(runner, rows):
    logits = runner.last_logits([SequenceRows([r.token_id], r.position, r.block_table) for r in rows])
    for row in rows:
        row.position += 1
    return logits
""",
        {"3.8": "row.position is changed"},
    ),
    Rewrite(
        "decode with all_logits",
        """
def decode(runner, rows):
    batch = []
    for row in rows:
        batch.append(SequenceRows((row.token_id,), row.position, row.block_table))
    return runner.all_logits(batch)
""",
    ),
    Rewrite(
        "decode by prefill",
        """
from minillm.worker.step import PrefillChunk

def decode(runner, rows):
    return prefill(runner, [PrefillChunk([r.token_id], r.position, r.block_table) for r in rows])
""",
    ),
    Rewrite(
        "decode in two calls",
        """
def decode(runner, rows):
    hidden = runner.forward([SequenceRows([r.token_id], r.position, r.block_table) for r in rows])
    return runner.decoder.logits(hidden)
""",
    ),
]
REWRITES = [*ADDRESSES, *CACHE, *TABLES, *LOOPS]
