"""Lab 4: wrong and odd solutions, and the diagnosis of each wrong one."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "fewer than asked for",
        "        if count > len(self._free):",
        "        count = min(count, len(self._free))\n        if count > len(self._free):",
        {"4.1": "fewer blocks than requested"},
    ),
    Slip(
        "the last block is refused",
        "if count > len(self._free):",
        "if count > max(len(self._free) - 1, 0):",
        {"4.1": "the last free block is never allocated"},
    ),
    Slip(
        "a failed allocation keeps its blocks",
        "        if count > len(self._free):",
        "        while count > len(self._free) > 0:\n            self._ref_count[self._free.pop()] = 1\n"
        "        if count > len(self._free):",
        {"4.1": "a failed allocation keeps some blocks"},
    ),
    Slip("a queue", "self._free.pop() for", "self._free.pop(0) for", {"4.1": "a stack, not a queue"}),
    Slip(
        "free blocks searched for",
        "taken = [self._free.pop() for _ in range(count)]",
        "taken = [self._free.pop() for _ in range(count)]\n        assert 0 in [*self._ref_count, 0]",
        {"4.1": "the whole pool is read"},
    ),
    Slip(
        "two owners at most",
        "self._ref_count[block_id] += 1",
        "self._ref_count[block_id] = 2",
        {"4.2": "the count is set to two"},
    ),
    Slip(
        "a free block is shared",
        "        self._require_owners(set(ids), times={})\n",
        "",
        {"4.2": "a free block gets an owner"},
    ),
    Slip(
        "the first owner frees",
        "            self._ref_count[block_id] -= 1\n",
        "            self._ref_count[block_id] = 0\n",
        {"4.3": "becomes free with its first owner"},
    ),
    Slip("first block first", "in reversed(ids):", "in ids:", {"4.3": "last block first"}),
    Slip(
        "the free list is searched",
        "            if self._ref_count[block_id] == 0:\n",
        "            if self._ref_count[block_id] == 0 and block_id not in self._free:\n",
        {"4.3": "the free list is searched before"},
    ),
    Slip(
        "a double free in one call",
        "times.get(block_id, 1)",
        "1",
        {"4.4": "look at `times`"},
    ),
    Slip(
        "Python's negative indices",
        "self._ref_count[self._checked(block_id)] <",
        "self._ref_count[block_id] <",
        {"4.4": "a negative id counts from the end"},
    ),
    Slip(
        "a double free goes through",
        "[self._checked(block_id)] < times.get(block_id, 1):",
        "[self._checked(block_id)] is None:",
        {"4.4": "a block without owners is accepted"},
    ),
    Slip(
        "a count of 0 goes through",
        "[self._checked(block_id)] < times.get(block_id, 1):",
        "[self._checked(block_id)] < 0:",
        {"4.4": "a count of 0 is accepted"},
    ),
    Slip(
        "nothing is shared",
        "shared = prompt_len // block_size",
        "shared = 0",
        {"4.5": "share the full blocks of the prompt"},
    ),
    Slip(
        "the partly full block is shared",
        "shared = prompt_len // block_size",
        "shared = blocks_for(prompt_len, block_size)",
        {"4.5": "every sample writes to its own"},
    ),
]

REWRITES = [
    # --- 4.1 --------------------------------------------------------------------------------------------
    Rewrite(
        "4.1 a slice",
        """
def allocate_slice(self, count=1):
    if count < 0:
        raise ValueError("count must not be negative")
    left = len(self._free) - count
    if left < 0:
        raise OutOfBlocks("too few blocks are free")
    taken = self._free[left:][::-1]
    del self._free[left:]
    for block_id in taken:
        self._ref_count[block_id] += 1
    return taken

BlockPool.allocate = allocate_slice
""",
    ),
    Rewrite(
        "4.1 a while loop",
        """
def allocate_while(self, count=1):
    require_int("count", count, minimum=0)
    taken = []
    while len(taken) < count <= self.num_free + len(taken):
        taken.append(self._free.pop())
        self._ref_count[taken[-1]] = 1
    if len(taken) != count:
        raise OutOfBlocks(f"{count} needed, {self.num_free} free")
    return taken

BlockPool.allocate = allocate_while
""",
    ),
    Rewrite(
        "4.1 undone after a failure",
        """
def allocate_undo(self, count=1):
    if count < 0:
        raise ValueError(count)
    taken = []
    try:
        for _ in range(count):
            taken.append(self._free.pop())
    except IndexError:
        self._free.extend(reversed(taken))
        raise OutOfBlocks("not enough") from None
    self._ref_count.__class__  # a list of counts
    for block_id in taken:
        self._ref_count[block_id] = 1
    return taken

BlockPool.allocate = allocate_undo
""",
    ),
    Rewrite(
        "4.1 the order of the list",
        """
def allocate_end(self, count=1):
    if count < 0:
        raise ValueError(count)
    if count > self.num_free:
        raise OutOfBlocks("too few")
    taken = self._free[len(self._free) - count :]
    del self._free[len(self._free) - count :]
    for block_id in taken:
        self._ref_count[block_id] = 1
    return taken

BlockPool.allocate = allocate_end
""",
        {"4.1": "freed last comes last"},
    ),
    Rewrite(
        "4.1 no check of the sign",
        """
def allocate_range(self, count=1):
    if count > self.num_free:
        raise OutOfBlocks("too few")
    taken = [self._free.pop() for _ in range(count)]
    for block_id in taken:
        self._ref_count[block_id] = 1
    return taken

BlockPool.allocate = allocate_range
""",
        {"4.1": "a negative `count` is accepted"},
    ),
    Rewrite(
        "4.1 the list stays as it is",
        """
def allocate_look(self, count=1):
    if count < 0:
        raise ValueError(count)
    if count > self.num_free:
        raise OutOfBlocks("too few")
    taken = [self._free[-1 - i] for i in range(count)]
    for block_id in taken:
        self._ref_count[block_id] = 1
    return taken

BlockPool.allocate = allocate_look
""",
        {"4.1": "stay on the free list"},
    ),
    Rewrite(
        "4.1 no owner",
        """
def allocate_unowned(self, count=1):
    if count < 0:
        raise ValueError(count)
    if count > self.num_free:
        raise OutOfBlocks("too few")
    return [self._free.pop() for _ in range(count)]

BlockPool.allocate = allocate_unowned
""",
        {"4.1": "no owner"},
    ),
    # --- 4.2 --------------------------------------------------------------------------------------------
    Rewrite(
        "4.2 a Counter",
        """
def share_counted(self, block_ids):
    more = Counter(block_ids)
    self._require_owners(set(more), {})
    for block_id, count in more.items():
        self._ref_count[block_id] += count

BlockPool.share = share_counted
""",
    ),
    Rewrite(
        "4.2 its own check",
        """
def share_checked(self, block_ids):
    ids = tuple(block_ids)
    if not all([self.ref_count(block_id) for block_id in ids]):
        raise ValueError("one of them is free")
    for block_id in ids:
        self._ref_count[block_id] = self._ref_count[block_id] + 1

BlockPool.share = share_checked
""",
    ),
    Rewrite(
        "4.2 undone after an error",
        """
def share_undo(self, block_ids):
    done = []
    try:
        for block_id in block_ids:
            if self.ref_count(block_id) == 0:
                raise ValueError(f"block {block_id} is free")
            self._ref_count[block_id] += 1
            done.append(block_id)
    except (ValueError, IndexError):
        for block_id in done:
            self._ref_count[block_id] -= 1
        raise

BlockPool.share = share_undo
""",
    ),
    Rewrite(
        "4.2 no check",
        """
def share_all(self, block_ids):
    for block_id in block_ids:
        self._ref_count[block_id] += 1

BlockPool.share = share_all
""",
        {"4.2": "nothing is checked"},
    ),
    Rewrite(
        "4.2 one by one",
        """
def share_each(self, block_ids):
    for block_id in block_ids:
        self._require_owners({block_id}, {})
        self._ref_count[block_id] += 1

BlockPool.share = share_each
""",
        {"4.2": "before all blocks are checked"},
    ),
    Rewrite(
        "4.2 a set",
        """
def share_set(self, block_ids):
    ids = set(block_ids)
    self._require_owners(ids, {})
    for block_id in ids:
        self._ref_count[block_id] += 1

BlockPool.share = share_set
""",
        {"4.2": "gets only one owner"},
    ),
    Rewrite(
        "4.2 read twice",
        """
def share_twice(self, block_ids):
    self._require_owners(set(block_ids), {})
    for block_id in block_ids:
        self._ref_count[block_id] += 1

BlockPool.share = share_twice
""",
        {"4.2": "read twice"},
    ),
    # --- 4.3 --------------------------------------------------------------------------------------------
    Rewrite(
        "4.3 a list of freed blocks",
        """
def free_collected(self, block_ids):
    ids = list(block_ids)
    self._require_owners(set(ids), Counter(ids))
    freed = []
    for block_id in ids[::-1]:
        left = self._ref_count[block_id] - 1
        self._ref_count[block_id] = left
        if not left:
            freed.append(block_id)
    self._free += freed

BlockPool.free = free_collected
""",
    ),
    Rewrite(
        "4.3 pops of a copy",
        """
def free_popped(self, block_ids):
    todo, counts = [*block_ids], {}
    for block_id in todo:
        counts[block_id] = counts.get(block_id, 0) + 1
    self._require_owners(set(counts), counts)
    while todo:
        self._ref_count[block_id := todo.pop()] -= 1
        if self._ref_count[block_id] < 1:
            self._free.append(block_id)

BlockPool.free = free_popped
""",
    ),
    Rewrite(
        "4.3 computed before it is written",
        """
def free_planned(self, block_ids):
    ids, left = list(block_ids), {}
    for block_id in ids:
        left[block_id] = left.get(block_id, self.ref_count(block_id)) - 1
    if min(left.values(), default=0) < 0:
        raise ValueError("freed more often than it has owners")
    for block_id, count in left.items():
        self._ref_count[block_id] = count
    gone = {}
    for at, block_id in enumerate(ids):
        if left[block_id] == 0:
            gone.setdefault(block_id, at)
    self._free.extend(sorted(gone, key=gone.get, reverse=True))

BlockPool.free = free_planned
""",
    ),
    Rewrite(
        "4.3 no check",
        """
def free_all(self, block_ids):
    for block_id in reversed(list(block_ids)):
        self._ref_count[block_id] -= 1
        if self._ref_count[block_id] == 0:
            self._free.append(block_id)

BlockPool.free = free_all
""",
        {"4.3": "nothing is checked"},
    ),
    Rewrite(
        "4.3 no times",
        """
def free_untimed(self, block_ids):
    ids = list(block_ids)
    self._require_owners(set(ids), {})
    for block_id in reversed(ids):
        self._ref_count[block_id] -= 1
        if self._ref_count[block_id] == 0:
            self._free.append(block_id)

BlockPool.free = free_untimed
""",
        {"4.3": "pass `times`"},
    ),
    Rewrite(
        "4.3 on the list with owners",
        """
def free_early(self, block_ids):
    ids = list(block_ids)
    self._require_owners(set(ids), Counter(ids))
    for block_id in reversed(ids):
        self._ref_count[block_id] -= 1
        self._free.append(block_id)

BlockPool.free = free_early
""",
        {"4.3": "although it has owners"},
    ),
    Rewrite(
        "4.3 the caller's list is emptied",
        """
def free_consumed(self, block_ids):
    ids = block_ids if isinstance(block_ids, list) else list(block_ids)
    self._require_owners(set(ids), Counter(ids))
    while ids:
        block_id = ids.pop()
        self._ref_count[block_id] -= 1
        if self._ref_count[block_id] == 0:
            self._free.append(block_id)

BlockPool.free = free_consumed
""",
        {"4.3": "the caller's list is emptied"},
    ),
    Rewrite(
        "4.3 counted in the list",
        """
def free_counted(self, block_ids):
    ids = list(block_ids)
    self._require_owners(set(ids), {block_id: ids.count(block_id) for block_id in ids})
    for block_id in reversed(ids):
        self._ref_count[block_id] -= 1
        if self._ref_count[block_id] == 0:
            self._free.append(block_id)

BlockPool.free = free_counted
""",
        {"4.3": "each block of a long call"},
    ),
    # --- 4.4 --------------------------------------------------------------------------------------------
    Rewrite(
        "4.4 a list of the missing",
        """
def require_all(self, ids, times):
    lacking = [i for i in ids if self.ref_count(i) < (times[i] if i in times else 1)]
    if lacking:
        raise ValueError(f"blocks {lacking} have too few owners")

BlockPool._require_owners = require_all
""",
    ),
    Rewrite(
        "4.4 subtraction",
        """
def require_left(self, ids, times):
    for block_id in sorted(ids):
        self._checked(block_id)
    for block_id in sorted(ids):
        needed = times.get(block_id) if block_id in times else 1
        if self._ref_count[block_id] - needed < 0:
            raise ValueError(block_id)

BlockPool._require_owners = require_left
""",
    ),
    Rewrite(
        "4.4 exists",
        """
def require_every(self, ids, times):
    if any(i < 0 or i >= len(self._ref_count) for i in ids):
        raise IndexError("no such block")
    if not all(self._ref_count[i] >= {i: 1, **times}[i] for i in ids if i not in times):
        raise ValueError("free")
    if not all(self._ref_count[i] >= times[i] for i in ids if i in times):
        raise ValueError("freed too often")

BlockPool._require_owners = require_every
""",
    ),
    Rewrite(
        "4.4 times of every id",
        """
def require_times(self, ids, times):
    for block_id in ids:
        if self._ref_count[self._checked(block_id)] < times[block_id]:
            raise ValueError(block_id)

BlockPool._require_owners = require_times
""",
        {"4.4": "fails if the id is not in"},
    ),
    Rewrite(
        "4.4 no owner without times",
        """
def require_zero(self, ids, times):
    for block_id in ids:
        if self._ref_count[self._checked(block_id)] < times.get(block_id, 0):
            raise ValueError(block_id)

BlockPool._require_owners = require_zero
""",
        {"4.4": "not in `times` needs one owner"},
    ),
    Rewrite(
        "4.4 one owner must stay",
        """
def require_more(self, ids, times):
    for block_id in ids:
        if self._ref_count[self._checked(block_id)] <= times.get(block_id, 1):
            raise ValueError(block_id)

BlockPool._require_owners = require_more
""",
        {"4.4": "one owner too many"},
    ),
    Rewrite(
        "4.4 the wrong exception",
        """
def require_typed(self, ids, times):
    for block_id in ids:
        if self._ref_count[self._checked(block_id)] < times.get(block_id, 1):
            raise OutOfBlocks("free")

BlockPool._require_owners = require_typed
""",
        {"4.4": "OutOfBlocks is raised"},
    ),
    # --- 4.5 --------------------------------------------------------------------------------------------
    Rewrite(
        "4.5 the first sample, then the others",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    one = blocks_for(total_len, block_size)
    return one + (n - 1) * (one - prompt_len // block_size)
""",
    ),
    Rewrite(
        "4.5 saved blocks",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    alone = n * ((total_len + block_size - 1) // block_size)
    saved = (n - 1) * (prompt_len // block_size)
    return alone - saved
""",
    ),
    Rewrite(
        "4.5 a loop over the samples",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    count, rest = divmod(prompt_len, block_size)
    for _ in range(n):
        count += -(-(total_len - prompt_len + rest) // block_size)
    return count
""",
    ),
    Rewrite(
        "4.5 every block of every sample, shared ones once",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    shared, blocks = prompt_len // block_size, set()
    for sample in range(n):
        for block in range(blocks_for(total_len, block_size)):
            owner = 0 if block < shared else sample
            blocks.add((owner, block))
    return len(blocks)
""",
    ),
    Rewrite(
        "4.5 every token of every sample",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    full = prompt_len - prompt_len % block_size
    blocks = set()
    for sample in range(n):
        for position in range(total_len):
            blocks.add((sample if position >= full else 0, position // block_size))
    return len(blocks)
""",
        {"4.5": "lines of Python run for 4 samples of 64 blocks"},
    ),
    Rewrite(
        "4.5 a set of the tokens",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    shared = prompt_len // block_size
    tokens = set(range(total_len)) - set(range(shared * block_size))
    return shared + n * blocks_for(len(tokens), block_size)
""",
        {"4.5": "bytes are needed at once for 4 samples of 64 blocks"},
    ),
    Rewrite(
        "4.5 the answer token by token",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    shared = prompt_len // block_size
    own = sum(1 for position in range(shared * block_size, total_len) if position % block_size == 0)
    return shared + n * own
""",
        {"4.5": "lines of Python run for 4 samples of 64 blocks"},
    ),
    Rewrite(
        "4.5 the answer's own blocks",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    return prompt_len // block_size + n * blocks_for(total_len - prompt_len, block_size)
""",
        {"4.5": "rounded up on their own"},
    ),
    Rewrite(
        "4.5 shared once for each",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    return prompt_len // block_size + n * blocks_for(total_len, block_size)
""",
        {"4.5": "counted again for every sample"},
    ),
    Rewrite(
        "4.5 shared not counted",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    return n * (blocks_for(total_len, block_size) - prompt_len // block_size)
""",
        {"4.5": "not counted at all"},
    ),
    Rewrite(
        "4.5 rounded down",
        """
def group_blocks(prompt_len, total_len, n, block_size):
    shared = prompt_len // block_size
    return shared + n * (total_len // block_size - shared)
""",
        {"4.5": "rounded down"},
    ),
]
