"""Lab 4: one-line mistakes in the finished file, and the diagnosis of each."""

from corpus.variants import Slip

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
        "if count >= len(self._free) > 0 < count:",
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
        {"4.1": "every block is checked"},
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
        {"4.3": "the free list is searched"},
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
        "[self._checked(block_id)] < 0:",
        {"4.4": "a block without owners is accepted"},
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
