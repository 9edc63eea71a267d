"""Tasks 3.1 and 3.2, from a position to its slot: cases and known mistakes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, SupportsIndex

from minillm.labs.grader.counts import BYTES, LINES, ReadList, small_work
from minillm.labs.grader.lab import Case, Counted, Mistake, Words

Slots = Callable[..., Any]

# --- 3.1 blocks -------------------------------------------------------------------------------------


def count_case(tokens: int, size: int) -> Case:
    """The number of blocks for so many tokens."""
    return Case(f"{tokens} tokens, blocks of {size}", lambda count: count(tokens, size))


def more_counts(random: Random) -> Iterator[Case]:
    """Sizes near a multiple of the block size, where rounding matters."""
    for size in (random.randrange(2, 9), random.randrange(9, 64)):
        full = size * random.randrange(1, 10**5)
        yield from (count_case(tokens, size) for tokens in (full - 1, full, full + 1))


def work_for_blocks(count: Callable[[int, int], Any]) -> Counted:
    """The work for 250 blocks: a loop over the blocks is right, one over the tokens is not."""
    return small_work(COUNT_LIMITS, count, (9, 4), (64_000, 256), endless=(1 << 50, 1 << 40))


def token_by_token(num_tokens: int, block_size: int) -> int:
    """Looks at every token, and counts those that begin a block."""
    return sum(position % block_size == 0 for position in range(num_tokens))


COUNT_LIMITS = 20 * 250, 400 * 250  # lines of Python and bytes for each block
COUNT_CASES = (
    *(count_case(*sizes) for sizes in ((10, 4), (8, 4), (1, 16), (0, 4), (17, 16), (5, 1), (15, 16))),
    Case("the work for 64,000 tokens, blocks of 256", work_for_blocks, "cost"),
)
COUNT_MISTAKES = (
    Mistake("rounded down: a partly full last block is a block too", lambda n, size: n // size),
    Mistake("one block too many if the last one is exactly full", lambda n, size: n // size + 1),
    Mistake("rounded to the nearest: a block with one token is a block too", lambda n, size: round(n / size)),
    Mistake("no token needs no block", lambda n, size: max(1, -(-n // size))),
    Mistake("tokens are counted, not blocks", lambda n, size: n),
    Mistake(
        "the result is the number of slots in the blocks, not of blocks", lambda n, size: -(-n // size) * size
    ),
    *(
        Mistake(
            f"more than {limit:,} {what} for 250 blocks: the work may grow with the blocks, not the tokens",
            wrong,
        )
        for limit, what, wrong in (
            (COUNT_LIMITS[0], LINES, token_by_token),
            (COUNT_LIMITS[1], BYTES, lambda n, size: len([*range(n)][::size])),
        )
    ),
)


# --- 3.2 slots --------------------------------------------------------------------------------------

_COPIES: dict[int, list[int]] = {}
_KEPT: list[Any] = []  # tables stay alive, so that no two of them ever have the same `id`


def table_of(*blocks: int) -> list[int]:
    """A new block table."""
    table = list(blocks)
    _KEPT.append(table)
    return table


def ints(slots: Sequence[SupportsIndex]) -> list[int]:
    """The slots as the engine takes them: any sequence of integers."""
    return [operator.index(slot) for slot in slots]


def slot_case(name: str, blocks: Sequence[int], positions: Sequence[int], size: int) -> Case:
    """The slots of `positions`."""
    return Case(name, lambda slots: ints(slots(table_of(*blocks), positions, size)))


def beyond(slots: Slots) -> list[Any]:
    """What happens at positions that the table has no block for."""
    return [
        _slots_or_error(slots, table_of(8, 3), positions) for positions in ([8], range(6, 10), [40], [9, 2])
    ]


def _slots_or_error(slots: Slots, table: list[int], positions: Sequence[int]) -> Any:
    try:
        return ints(slots(table, positions, 4))
    except NotImplementedError:
        raise
    except IndexError:  # or a kind of it
        return Words("raises IndexError")
    except Exception as error:
        return Words(f"raises {type(error).__name__}")


def negative(slots: Slots) -> list[Any]:
    """What happens at positions before the first one."""
    return [_slots_or_error(slots, table_of(8, 3), positions) for positions in ([-1], [3, -4], range(-2, 3))]


def grown(slots: Slots) -> list[Any]:
    """The same table object, before and after it grows and after one of its blocks is replaced."""
    table = table_of(6, 1)
    seen = [ints(slots(table, range(4, 8), 4))]
    table += [9]
    seen.append(ints(slots(table, range(4, 12), 4)))
    table[1] = 2
    return [*seen, ints(slots(table, range(4, 12), 4)), table]


def in_turns(slots: Slots) -> list[Any]:
    """Two sequences at the same positions, in turns."""
    tables = table_of(4, 7), table_of(2, 5)
    return [ints(slots(tables[i], [position], 4)) for position in (5, 6) for i in (0, 1)]


def twice(slots: Slots) -> list[Any]:
    """The same arguments twice. In between, the caller changes the first result."""
    table, positions = table_of(3, 8), list(range(2, 7))
    first = slots(table, positions, 4)
    seen = [ints(first)]
    if isinstance(first, list):
        first.append(-1)
    seen.append(ints(slots(table, positions, 4)))
    if isinstance(first, list):
        first.pop()  # a result that is kept must be the same in the next run
    return [*seen, table, positions]


def entries_read(slots: Slots) -> Words:
    """The entries of a long table that are read for a chunk at its end."""
    table, positions = ReadList(range(1024, 0, -1)), range(4000, 4096)
    slots(table, positions, 4)
    allowed = 4 * (len(table) + len(positions))
    if table.num_reads <= allowed:
        return Words("reads the table at most a few times")
    return Words(f"reads {table.num_reads} entries of the table, needs 24")


def remembers(key: Callable[..., Any], anew: bool = False) -> Slots:
    """Keeps results under `key(table, positions)`; returns the kept list, or with `anew` a copy of it."""
    known: dict[Any, list[int]] = {}

    def slots(table: list[int], positions: Sequence[int], size: int) -> list[int]:
        found = known.setdefault(key(table, positions), own_slots(table, positions, size))
        return list(found) if anew else found

    return slots


def own_slots(table: Sequence[int], positions: Sequence[int], size: int) -> list[int]:
    """The right slots."""
    return [table[pos // size] * size + pos % size for pos in positions]


def checked(slots: Slots) -> Slots:
    """`slots`, and an IndexError for negative positions."""

    def run(table: Sequence[int], positions: Sequence[int], size: int) -> Any:
        if min(positions, default=0) < 0:
            raise IndexError
        return slots(table, positions, size)

    return run


def raises(kind: type[Exception]) -> Slots:
    """The right slots; positions without a block are an error of another type."""

    def slots(table: Sequence[int], positions: Sequence[int], size: int) -> list[int]:
        if any(pos // size >= len(table) for pos in positions):
            raise kind
        return own_slots(table, positions, size)

    return slots


def keeps_table(table: list[int], positions: Sequence[int], size: int) -> list[int]:
    """Keeps a copy of each table, which does not grow."""
    return own_slots(_COPIES.setdefault(id(table), list(table)), positions, size)


def scanned(table: Sequence[int], positions: Sequence[int], size: int) -> list[int]:
    """Walks through the table from its beginning for every position."""
    return [
        next(block * size + pos % size for i, block in enumerate(table) if i == pos // size)
        for pos in positions
    ]


def more_slots(random: Random) -> Iterator[Case]:
    """Random tables, block sizes and positions."""
    for _ in range(4):
        size, blocks = random.randrange(1, 33), random.sample(range(500), random.randrange(1, 20))
        count = len(blocks) * size
        positions = random.sample(range(count), random.randrange(1, min(count, 40) + 1))
        title = f"{len(positions)} positions in {len(blocks)} blocks of {size}"
        yield slot_case(title, blocks, positions, size)


SLOT_CASES = (
    slot_case("the whole sequence of the handout's picture", [5, 2, 7], range(10), 4),
    slot_case("one token, as in decode", [5, 2, 7], [9], 4),
    slot_case("a chunk from the middle", [3, 0, 9, 1], range(6, 13), 4),
    slot_case("no token", [3], [], 4),
    slot_case("blocks of one slot", [4, 2, 6], range(3), 1),
    slot_case("positions in any order, one of them twice", [6, 2, 9], [11, 0, 5, 0], 4),
    slot_case("a table with more blocks than the positions need", [7, 4, 1, 8, 3], range(2, 6), 4),
    Case("positions that the table has no block for: [8], 6 to 9, [40] in two blocks of 4", beyond),
    Case("negative positions: [-1], [3, -4], -2 to 2 in two blocks of 4", negative),
    Case("a table that grows, then gets another block in the middle", grown, "aliasing"),
    Case("two sequences at the same positions, in turns", in_turns, "aliasing"),
    Case("twice the same, and the first result is changed in between", twice, "aliasing"),
    Case("a long table", entries_read, "cost"),
)
_SLOT_MISTAKES = (
    Mistake(
        "a negative position gets a slot of the last block, as Python counts from a list's end: raise an "
        "IndexError",
        own_slots,
    ),
    *(
        Mistake(
            f"the error at a position without a block is a {kind.__name__}: raise an IndexError", raises(kind)
        )
        for kind in (ValueError, KeyError, AssertionError, RuntimeError)
    ),
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
        lambda table, positions, size: own_slots(table, range(len(positions)), size),
    ),
    Mistake(
        "a position after the last block gets a slot of the last block, and overwrites another token: let "
        "the IndexError pass",
        lambda table, positions, size: [
            table[min(pos // size, len(table) - 1)] * size + pos % size for pos in positions
        ],
    ),
    Mistake(
        "a position after the last block starts again at the first block, and overwrites another token: let "
        "the IndexError pass",
        lambda table, positions, size: [
            table[pos // size % len(table)] * size + pos % size for pos in positions
        ],
    ),
    Mistake(
        "a position after the last block is left out: the rows that follow would get wrong slots; let the "
        "IndexError pass",
        lambda table, positions, size: own_slots(
            table, [pos for pos in positions if pos // size < len(table)], size
        ),
    ),
    Mistake(
        "a position after the last block gets slot -1: let the IndexError pass",
        lambda table, positions, size: [
            table[pos // size] * size + pos % size if pos // size < len(table) else -1 for pos in positions
        ],
    ),
    *(
        Mistake("the result for a table is kept by its `id`, and the table has changed since", wrong)
        for wrong in (
            remembers(lambda table, positions: (id(table), tuple(positions))),
            remembers(lambda table, positions: (id(table), tuple(positions)), anew=True),
        )
    ),
    *(
        Mistake("a result is kept for its positions: another sequence at these positions has others", wrong)
        for wrong in (
            remembers(lambda table, positions: tuple(positions)),
            remembers(lambda table, positions: tuple(positions), anew=True),
        )
    ),
    Mistake("a copy of the table is kept by its `id`, and the table has changed since", keeps_table),
    Mistake(
        "the same list is returned again: the caller may have changed it; return a new one",
        remembers(lambda table, positions: (tuple(table), tuple(positions))),
    ),
    Mistake("the table is walked from its beginning for every position: index it", scanned),
)
# Each as it is, and with an IndexError for negative positions: a file may have both right or both wrong.
SLOT_MISTAKES = tuple(
    Mistake(mistake.diagnosis, wrong)
    for mistake in _SLOT_MISTAKES
    for wrong in (mistake.wrong, checked(mistake.wrong))
    if mistake.wrong is not own_slots or wrong is own_slots
)
