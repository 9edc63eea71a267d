"""Task 4.5, the blocks that n samples of one prompt need: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random

from minillm.labs.grader.counts import BYTES, LINES, small_work
from minillm.labs.grader.lab import Case, Counted, Mistake
from minillm.memory.block_table import blocks_for


def group_case(prompt: int, total: int, n: int, size: int) -> Case:
    """One answer."""
    return Case(
        f"{n} x {total} tokens, {prompt} of them in the prompt, blocks of {size}",
        partial(lambda arguments, blocks: blocks(*arguments), (prompt, total, n, size)),
    )


def more_groups(random: Random) -> Iterable[Case]:
    """Random sizes."""
    for _ in range(8):
        prompt = random.randint(1, 90)
        yield group_case(prompt, prompt + random.randint(0, 60), random.randint(1, 7), random.randint(1, 20))


def work_for_group(blocks: Callable[..., int]) -> Counted:
    """The work for 4 samples of 64 blocks: a loop over the blocks is right, one over the tokens is not."""
    endless = (1 << 49, 1 << 50, 4, 1 << 40)
    return small_work(GROUP_LIMITS, blocks, (10, 17, 3, 4), (32_000, 64_000, 4, 1_000), endless)


def token_by_token(prompt_len: int, total_len: int, n: int, block_size: int) -> int:
    """Looks at every token of every sample, and counts the blocks that begin with it."""
    blocks, own = prompt_len // block_size, prompt_len // block_size * block_size
    for _ in range(n):
        for position in range(own, total_len):
            blocks += position % block_size == 0
    return blocks


def lists_of_tokens(prompt_len: int, total_len: int, n: int, block_size: int) -> int:
    """Makes a list of the tokens that follow the shared blocks."""
    shared = prompt_len // block_size
    return shared + n * len([*range(shared * block_size, total_len)][::block_size])


GROUP_LIMITS = 20 * 4 * 64, 400 * 4 * 64  # lines of Python and bytes for each block of each sample
GROUP_CASES = (
    *(
        group_case(*sizes)
        for sizes in (
            (8, 16, 1, 4),
            (8, 16, 3, 4),
            (10, 17, 3, 4),
            (3, 4, 5, 4),
            (8, 8, 2, 4),
            (7, 7, 2, 4),
            (5, 9, 4, 1),
            (33, 100, 4, 16),
            (1000, 50_000, 100, 16),
        )
    ),
    Case(
        "the work for 4 x 64,000 tokens, 32,000 of them in the prompt, blocks of 1,000",
        work_for_group,
        "cost",
    ),
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
        "the prompt's last block is never shared: it is, if the prompt fills it",
        blocks_if_shared(lambda prompt, total, size: (prompt - 1) // size),
    ),
    Mistake(
        "the shared blocks are counted again for every sample: count them once",
        lambda prompt, total, n, size: prompt // size + n * blocks_for(total, size),
    ),
    Mistake(
        "the shared blocks are not counted at all: count them once",
        lambda prompt, total, n, size: n * (blocks_for(total, size) - prompt // size),
    ),
    Mistake(
        "the blocks of prompt and answer are rounded up on their own: the answer continues in a block",
        lambda prompt, total, n, size: prompt // size + n * blocks_for(total - prompt, size),
    ),
    Mistake(
        "the blocks are rounded down: the last, partly full block counts too",
        lambda prompt, total, n, size: prompt // size + n * (total // size - prompt // size),
    ),
    Mistake(
        "`total_len` is added to the prompt: it includes the prompt",
        lambda prompt, total, n, size: (
            prompt // size + n * (blocks_for(prompt + total, size) - prompt // size)
        ),
    ),
    Mistake(
        "tokens are counted, not blocks",
        lambda prompt, total, n, size: prompt + n * (total - prompt),
    ),
    Mistake(
        "the answers are counted as shared too: they differ from the first token on",
        blocks_if_shared(lambda prompt, total, size: blocks_for(total, size)),
    ),
    *(
        Mistake(
            f"more than {limit:,} {what} for 4 samples of 64 blocks: the work may grow with the blocks and "
            "the samples, not the tokens",
            wrong,
        )
        for limit, what, wrong in (
            (GROUP_LIMITS[0], LINES, token_by_token),
            (GROUP_LIMITS[1], BYTES, lists_of_tokens),
        )
    ),
)
