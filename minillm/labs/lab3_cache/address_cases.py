"""Tasks 3.1 and 3.2, from a position to its slot: cases and known mistakes."""

from __future__ import annotations

from functools import partial

from minillm.labs.grader.lab import Case, Mistake

COUNT_CASES = tuple(
    Case(f"{tokens} tokens, blocks of {size}", partial(lambda tokens, size, f: f(tokens, size), tokens, size))
    for tokens, size in ((10, 4), (8, 4), (1, 16), (0, 4), (17, 16), (5, 1))
)
COUNT_MISTAKES = (
    Mistake("rounded down: a partly full last block is a block too", lambda n, size: n // size),
    Mistake("one block too many if the last one is exactly full", lambda n, size: n // size + 1),
)
SLOT_CASES = (
    Case("the whole sequence of the module's picture", lambda slots: slots([5, 2, 7], range(10), 4)),
    Case("one token, as in decode", lambda slots: slots([5, 2, 7], [9], 4)),
    Case("a chunk from the middle", lambda slots: slots([3, 0, 9, 1], range(6, 13), 4)),
    Case("no token", lambda slots: slots([3], [], 4)),
    Case("blocks of one slot", lambda slots: slots([4, 2, 6], range(3), 1)),
)
SLOT_MISTAKES = (
    Mistake(
        "the block table is ignored, as if blocks were contiguous: a position is not a slot",
        lambda table, positions, size: list(positions),
    ),
    Mistake(
        "all slots are counted from the first block's address: blocks need not be neighbours",
        lambda table, positions, size: [table[0] * size + pos for pos in positions],
    ),
    Mistake(
        "the offset in the block is missing: add pos % block_size",
        lambda table, positions, size: [table[pos // size] * size for pos in positions],
    ),
    Mistake(
        "the block id is not multiplied by block_size: slots count tokens, not blocks",
        lambda table, positions, size: [table[pos // size] + pos % size for pos in positions],
    ),
    Mistake(
        "// and % are exchanged: pos // block_size is the entry of the table, pos % block_size the offset",
        lambda table, positions, size: [table[pos % size] * size + pos // size for pos in positions],
    ),
    Mistake(
        "positions are counted from the start of the chunk: use the positions in the sequence",
        lambda table, positions, size: [table[i // size] * size + i % size for i in range(len(positions))],
    ),
)
