"""Tasks 3.3 and 3.4: known mistakes of `write_cache` and `read_cache`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.lab import Mistake
from minillm.ops.reference import read_cache, write_cache

_KEPT: list[Tensor] = []

# --- 3.3 write_cache --------------------------------------------------------------------------------


def writes_to(place: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., None]:
    """A write to other slots: `place(slots, block_size)`."""
    return lambda cache, slots, rows: write_cache(cache, place(slots, cache.shape[1]), rows)


def into_blocks(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Takes a slot for a block id."""
    cache[slots, 0] = rows.to(cache.dtype)


def adds(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Adds the rows to what the slots hold."""
    cache.flatten(0, 1).index_add_(0, slots, rows.to(cache.dtype))


def clears_blocks(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Clears the blocks before it writes."""
    cache[slots // cache.shape[1]] = 0
    write_cache(cache, slots, rows)


def not_converted(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Only works if both have the same dtype."""
    cache.flatten(0, 1)[slots] = rows


def into_a_copy(cache: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
    """Returns a new cache."""
    written = cache.clone()
    write_cache(written, slots, rows)
    return written


def whole_cache(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Writes every slot of the cache again."""
    cache.copy_(into_a_copy(cache, slots, rows))


def masked(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Looks at every slot of the cache to find those of the rows."""
    flat, order = cache.flatten(0, 1), slots.argsort()
    mask = flat.new_zeros(len(flat), dtype=torch.bool)
    mask[slots] = True
    flat.masked_scatter_(mask[:, None, None].expand_as(flat), rows[order].to(cache.dtype))


def heads_exchanged(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """The heads of a row in the opposite order."""
    write_cache(cache, slots, rows.flip(1))


WRITE_MISTAKES = (
    Mistake("a slot is used as a block id: block slot // block_size, place slot % block_size", into_blocks),
    Mistake(
        "the rows are written one after another from the first slot on: each row has its own slot",
        writes_to(lambda slots, size: slots[:1] + torch.arange(len(slots))),
    ),
    Mistake("rows are added to what the slots hold: overwrite it, blocks are used again", adds),
    Mistake("the rest of the block is cleared: it holds keys and values of earlier tokens", clears_blocks),
    Mistake("the rows are not converted to the cache's dtype", not_converted),
    Mistake("a copy of the cache is written, and the cache stays as it was: write in place", into_a_copy),
    Mistake("every slot of the cache is written again: write only the slots of the rows", whole_cache),
    Mistake("a mask goes over every slot of the cache: index with the slots of the rows", masked),
    Mistake(
        "the slots are sorted, but not the rows: row i belongs to slot i",
        writes_to(lambda slots, size: slots.sort().values),
    ),
    Mistake(
        "only the place in the block is used, so every row lands in block 0: block slot // block_size",
        writes_to(lambda slots, size: slots % size),
    ),
    Mistake("the heads of a row are in another order", heads_exchanged),
    Mistake("nothing is written", lambda cache, slots, rows: None),
)


# --- 3.4 read_cache ---------------------------------------------------------------------------------


def neighbours(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Reads on after the first block."""
    start = int(table[0]) * cache.shape[1]
    slots = torch.arange(start, start + num_tokens) % (cache.shape[0] * cache.shape[1])
    return cache.flatten(0, 1)[slots]


def whole_blocks(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Returns the unused rows of the last block too."""
    return cache[table[: -(-num_tokens // cache.shape[1])]].flatten(0, 1)


def full_blocks(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Leaves out a partly full last block."""
    return cache[table[: num_tokens // cache.shape[1]]].flatten(0, 1)


def every_block(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Reads the whole table and then cuts."""
    return cache[table].flatten(0, 1)[:num_tokens]


def last_rows(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Cuts at the wrong end."""
    return whole_blocks(cache, table, num_tokens)[-num_tokens:]


def sorted_blocks(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Reads the blocks in the order of their ids."""
    used = table[: -(-num_tokens // cache.shape[1])]
    return read_cache(cache, used.sort().values, num_tokens)


def blocks_as_slots(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """One row of each block."""
    return cache.flatten(0, 1)[table[:num_tokens]]


def copies_cache(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Copies the whole cache and then reads from the copy."""
    return read_cache(cache.clone(), table, num_tokens)


def one_more(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Reads one more block if the last one is full."""
    return cache[table[: num_tokens // cache.shape[1] + 1]].flatten(0, 1)[:num_tokens]


def converts_cache(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Converts the whole cache to float32 and the rows back."""
    return read_cache(cache.float(), table, num_tokens).to(cache.dtype)


def in_float32(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """Returns the rows in float32."""
    return read_cache(cache, table, num_tokens).float()


def remembers(key: Callable[[Tensor, Tensor, int], Any], anew: bool) -> Callable[..., Tensor]:
    """Keeps the rows that were read under `key(...)`; returns the kept tensor, or with `anew` a copy."""
    known: dict[Any, Tensor] = {}

    def read(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
        _KEPT.extend((cache, table))  # no other tensor gets their `id`
        found = known.setdefault(key(cache, table, num_tokens), read_cache(cache, table, num_tokens))
        return found.clone() if anew else found

    return read


def view_of_neighbours(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """A view of the cache if the blocks are neighbours."""
    ids = table[: -(-num_tokens // cache.shape[1])].tolist()
    if ids == list(range(ids[0], ids[0] + len(ids))):
        return cache[ids[0] : ids[0] + len(ids)].flatten(0, 1)[:num_tokens]
    return read_cache(cache, table, num_tokens)


def view_of_one(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """A view of the cache if one block is enough."""
    if num_tokens <= cache.shape[1]:
        return cache[int(table[0]), :num_tokens]
    return read_cache(cache, table, num_tokens)


READ_MISTAKES = (
    Mistake(
        "the block table is ignored: the rows are read from the beginning of the cache",
        lambda cache, table, num_tokens: cache.flatten(0, 1)[:num_tokens].clone(),
    ),
    Mistake("reading goes on after the first block: blocks need not be neighbours", neighbours),
    Mistake("the unused rows of the last block are returned too: return num_tokens rows", whole_blocks),
    Mistake("a partly full last block is left out: round the number of blocks up", full_blocks),
    Mistake(
        "every entry of the table is read, also those for later tokens and the zeros: read only the blocks "
        "that hold these tokens",
        every_block,
    ),
    Mistake("the first rows are cut off: the unused rows are at the end of the last block", last_rows),
    Mistake("the blocks are read in the order of their ids: the table has their order", sorted_blocks),
    Mistake("block ids are used as slots: block b holds slots b * block_size and on", blocks_as_slots),
    Mistake("rows of one block are a view of the cache, and change with it: return a copy", view_of_one),
    Mistake("rows of neighbouring blocks are a view of the cache: return a copy", view_of_neighbours),
    Mistake("the whole cache is copied: read only the blocks of the sequence", copies_cache),
    Mistake("the whole cache is converted: read the rows first", converts_cache),
    Mistake("the rows are converted to float32: return them in the cache's dtype", in_float32),
    Mistake("a block too many is read if the last one is exactly full: round up", one_more),
    *(
        Mistake(
            "rows are kept from an earlier call: the cache has been written, or the table or the cache is "
            "another one",
            remembers(key, anew),
        )
        for anew in (False, True)
        for key in (
            lambda cache, table, num_tokens: (tuple(table.tolist()), num_tokens),
            lambda cache, table, num_tokens: (id(table), num_tokens),
            lambda cache, table, num_tokens: (id(cache), tuple(table.tolist()), num_tokens),
        )
    ),
)
