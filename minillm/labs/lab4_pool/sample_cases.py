"""Task 4.5, the blocks that n samples of one prompt need: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from minillm.labs.grader.lab import Case, Mistake
from minillm.memory.block_table import blocks_for

GROUP_CASES = tuple(
    Case(
        f"{n} x {total} tokens, {prompt} of them in the prompt, blocks of {size}",
        partial(lambda arguments, blocks: blocks(*arguments), (prompt, total, n, size)),
    )
    for prompt, total, n, size in (
        (8, 16, 1, 4),
        (8, 16, 3, 4),
        (10, 17, 3, 4),
        (3, 4, 5, 4),
        (33, 100, 4, 16),
    )
)


def blocks_if_shared(shared: Callable[[int, int, int], int]) -> Callable[..., int]:
    """`group_blocks` with another number of shared blocks: shared(prompt, total, block size)."""

    def blocks(prompt_len: int, total_len: int, n: int, block_size: int) -> int:
        common = shared(prompt_len, total_len, block_size)
        return common + n * (blocks_for(total_len, block_size) - common)

    return blocks


GROUP_MISTAKES = (
    Mistake(
        "no block is shared: samples share the full blocks of the prompt", blocks_if_shared(lambda *_: 0)
    ),
    Mistake(
        "the prompt's partly full block is counted as shared: every sample writes to its own",
        blocks_if_shared(lambda prompt, total, size: blocks_for(prompt, size)),
    ),
    Mistake(
        "the shared blocks are counted again for every sample: count them once",
        lambda prompt, total, n, size: prompt // size + n * blocks_for(total, size),
    ),
    Mistake(
        "the answers are counted as shared too: they differ from the first token on",
        blocks_if_shared(lambda prompt, total, size: blocks_for(total, size)),
    ),
)
