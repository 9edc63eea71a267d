"""The cases of lab 8: each section of the kernel, the whole kernel, and an engine with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.grader.cuda_cost import barriers, bytes_moved, within
from minillm.labs.grader.cuda_kernels import Kernels
from minillm.labs.grader.cuda_lab import Section
from minillm.labs.grader.lab import Case, Side, Words
from minillm.labs.grader.tiny_model import random_tensor, tiny_llm
from minillm.ops.contract import AttentionMetadata
from minillm.ops.reference import ReferenceOps

SOURCE = Path(__file__).with_name("lab8.cu")
DIM, THREADS, WARPS = 8, 128, 4
ROW = 4 * DIM  # bytes of a key


def section(number: str, name: str) -> Section:
    """The section of task `number`, the body of function `name`."""
    return Section(str(SOURCE), name, task=number)


def case(name: str, run: Callable[..., Any], *arguments: Any, side: Side = "answer") -> Case:
    """A case that calls `run` with these arguments."""
    return Case(name, partial(run, *arguments), side)


# ---- 8.1 ---------------------------------------------------------------------------------------------------


def slots(table: list[int], block_size: int, keys: int, kernels: Kernels) -> list[Any]:
    """The slots of the first `keys` positions, and the bytes of the table that were read."""
    found = torch.zeros(keys, dtype=torch.int32)
    table_tensor = torch.tensor(table, dtype=torch.int32)
    kernels.run("run_slots", table=table_tensor, slots=found, keys=keys, block_size=block_size)
    return [found, *bytes_moved(kernels.counted, {"table": 4 * entries_read(keys, block_size)})]


def entries_read(keys: int, block_size: int) -> int:
    """The entries of a table that are read for so many keys, once for all lanes of a warp."""
    warps = (range(first, min(keys, first + 32)) for first in range(0, keys, 32))
    return sum(len({key // block_size for key in warp}) for warp in warps)


SLOTS = (
    case("pages of 4", slots, [5, 2, 7], 4, 12),
    case("pages of 1", slots, [4, 0, 2], 1, 3),
    case("pages of 3", slots, [3, 1, 4, 0], 3, 12),
    case("pages of 16, a table longer than needed", slots, [2, 9, -1, -1], 16, 20, side="aliasing"),
)


def more_slots(random: Random) -> Iterator[Case]:
    """Any table."""
    for _ in range(2):
        size, pages = random.randint(1, 20), random.sample(range(30), 5)
        yield case(f"pages of {size}, table {pages}", slots, pages, size, random.randint(1, 5 * size))


# ---- 8.2 ---------------------------------------------------------------------------------------------------


def dots(seed: int, kernels: Kernels) -> list[Any]:
    """128 dot products, and whether the keys were read 16 bytes at a time.

    Two loads of 16 bytes by 32 lanes fetch 64 sectors, eight of 4 bytes 256. q is at most 8 sectors more.
    """
    found = torch.zeros(THREADS)
    kernels.run("run_dot", q=random_tensor(seed, DIM), keys=random_tensor(seed + 1, THREADS, DIM), sums=found)
    needed = 64 * WARPS + DIM * WARPS
    return [found, within("sectors fetched", kernels.counted.global_read_sectors, needed)]


DOTS = (
    case("128 keys", dots, 1),
    case("128 other keys", dots, 11, side="aliasing"),
)


def more_dots(random: Random) -> Iterable[Case]:
    """Any keys."""
    return [case("random keys", dots, random.randrange(10**6))]


# ---- 8.3 ---------------------------------------------------------------------------------------------------


def maxima(places: list[int], shift: float, kernels: Kernels) -> list[Any]:
    """Rounds whose maximum is at each of `places`; the other values lie around `shift`."""
    values, rounds = random_tensor(3, len(places), THREADS) + shift, len(places)
    for i, place in enumerate(places):
        values[i, place] = shift + 5 + rounds - i  # the maxima fall, so an old one shows
    found = torch.zeros(rounds, THREADS)
    kernels.run("run_max", values=values, found=found, rounds=rounds)
    return [
        found,
        barriers(kernels.counted, 2 * rounds, 1.5),
        within("shuffles of a warp", kernels.counted.warp_operations, 5 * WARPS * rounds, 2.0),
    ]


MAXIMA = (
    case("one round, the largest value in the last warp", maxima, [100], 0.0),
    case("the largest value in an odd lane of the first warp", maxima, [17], 0.0),
    case("negative values", maxima, [40], -50.0),
    case("three rounds, one after the other", maxima, [5, 70, 127], -10.0, side="aliasing"),
)


def more_maxima(random: Random) -> Iterator[Case]:
    """Maxima at any place."""
    for _ in range(2):
        places = [random.randrange(THREADS) for _ in range(random.randint(1, 3))]
        yield case(f"the largest values at {places}", maxima, places, random.uniform(-20, 20))


# ---- 8.4 ---------------------------------------------------------------------------------------------------


def values(factor: float, rows: list[int], kernels: Kernels) -> list[Any]:
    """Columns and sums after the keys of `rows`, and the bytes that were read.

    In the whole kernel weights and offsets are in shared memory, so a second read of them costs little.
    """
    out, sums, count = torch.zeros(DIM), torch.zeros(DIM), len(rows)
    offsets = torch.tensor([*rows, 0], dtype=torch.int32) * DIM  # one more, that must not be used
    weights = random_tensor(4, count + 1).abs()
    cache = random_tensor(5, max(rows) + 1, DIM)
    kernels.run(
        "run_values",
        weights=weights,
        values=cache,
        offsets=offsets,
        out=out,
        sums=sums,
        count=count,
        factor=factor,
    )
    in_shared = {"weights": 4 * count, "offsets": 4 * count}
    return [
        *(out, sums),
        *bytes_moved(kernels.counted, {"values": count * ROW}),
        *bytes_moved(kernels.counted, in_shared, 2.0),
    ]


VALUES = (
    case("factor 1", values, 1.0, [3, 0, 4, 1, 5]),
    case("factor 1/4", values, 0.25, [3, 0, 4, 1, 5]),
    case("factor 0, one key", values, 0.0, [2]),
    case("one row twice", values, 0.5, [1, 2, 1], side="aliasing"),
)


def more_values(random: Random) -> Iterator[Case]:
    """Any rows."""
    for _ in range(2):
        rows = [random.randrange(12) for _ in range(random.randint(1, 12))]
        yield case(f"rows {rows}", values, random.random(), rows)


# ---- 8.5, 8.6 ----------------------------------------------------------------------------------------------


def attend(
    kernels: Kernels,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    kv_len: Tensor,
    scale: float,
    is_checked: bool = True,
) -> Tensor:
    """The student's kernel on a batch of sequences with one row each."""
    out = torch.full(q.shape, math.nan)
    kernels.run(
        "run_decode",
        is_checked,
        q=q.contiguous(),
        k_cache=k_cache,
        v_cache=v_cache,
        block_table=table,
        kv_len=kv_len,
        out=out,
        num_seqs=len(q),
        num_heads=q.shape[1],
        num_kv_heads=k_cache.shape[2],
        max_blocks=table.shape[1],
        block_size=k_cache.shape[1],
        scale=scale,
    )
    return out


def decode(
    lengths: list[int],
    heads: int,
    kv_heads: int,
    block_size: int,
    seed: int,
    kernels: Kernels,
    is_checked: bool = True,
) -> list[Any]:
    """The output for sequences over shuffled pages, and whether inputs are kept. Foreign slots hold NaN."""
    counts = [-(-n // block_size) for n in lengths]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(seed)).tolist()
    table = torch.full((len(lengths), max(counts)), order.pop(), dtype=torch.int32)
    caches = [torch.full((len(order) + 1, block_size, kv_heads, DIM), math.nan) for _ in range(2)]
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        pages = torch.tensor([order.pop() for _ in range(count)])
        table[i, :count] = pages
        slots = (pages[:, None] * block_size + torch.arange(block_size)).flatten()[:length]
        for c, cache in enumerate(caches):
            cache.view(-1, kv_heads, DIM)[slots] = random_tensor(seed + 10 * i + c, length, kv_heads, DIM)
    q = random_tensor(seed + 6, len(lengths), heads, DIM)
    before = [x.clone() for x in (q, *caches)]
    kv_len = torch.tensor(lengths, dtype=torch.int32)
    out = attend(kernels, q, caches[0], caches[1], table, kv_len, 0.5, is_checked)
    kept = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, (q, *caches), strict=True))
    return [out, Words("q and caches as before" if kept else "q or a cache was changed")]


def falling(kernels: Kernels) -> Tensor:
    """Two rounds; the first has a score of about 200, the second of about 5."""
    q, cache = random_tensor(1, 1, 1, DIM), random_tensor(2, 20, 8, 1, DIM)
    cache[0, 3] = 400 * q[0] / q.square().sum()
    table, kv_len = torch.arange(20, dtype=torch.int32)[None], torch.tensor([150], dtype=torch.int32)
    return attend(kernels, q, cache, random_tensor(3, *cache.shape), table, kv_len, 0.5)


def unchecked(kernels: Kernels) -> list[Any]:
    """Two rounds without checks: tells a missing barrier from data that were never written."""
    return decode([200], 1, 1, 16, 3, kernels, is_checked=False)


def cost(lengths: list[int], heads: int, kernels: Kernels) -> list[Words]:
    """What the kernel moves and how often it waits, two heads to a kv head."""
    decode(lengths, heads, heads // 2, 16, 0, kernels)
    own, rows = 4 * len(lengths) * heads * DIM, heads * sum(lengths) * ROW
    rounds = heads * sum(-(-n // THREADS) for n in lengths)
    entries = heads * sum(entries_read(length, 16) for length in lengths)
    return [
        *bytes_moved(kernels.counted, {"q": own, "k_cache": rows, "v_cache": rows, "out": own}),
        *bytes_moved(kernels.counted, {"block_table": 4 * entries}, 1.5),
        barriers(kernels.counted, 4 * rounds, 1.5),
    ]


def generate(kernels: Kernels) -> list[str]:
    """Texts of an engine that decodes with the student's kernel and prefills with the reference."""
    reference = ReferenceOps()

    def attention(
        q: Tensor, k: Tensor, v: Tensor, meta: AttentionMetadata, scale: float, window: int | None = None
    ) -> Tensor:
        if q.shape[0] != len(meta.kv_len):
            return reference.paged_attention(q, k, v, meta, scale, window)
        return attend(kernels, q, k, v, meta.block_table, meta.kv_len, scale)

    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    prompts = ["a cat", "b", "the little dog ran"]
    return [output.text for output in tiny_llm(parts={"attention": attention}).generate(prompts, params)]


WHOLE = (
    case("one short sequence", decode, [5], 1, 1, 4, 0),
    case("two heads share a kv head, lengths 1, 7 and 40", decode, [1, 7, 40], 2, 1, 4, 0),
    case("six heads over three kv heads", decode, [9], 6, 3, 4, 0),
    case("more than one round of 128 keys", decode, [128, 129, 300], 1, 1, 16, 0),
    case("128 keys, exactly one round", decode, [128], 1, 1, 16, 1),
    case("the largest score by far in the first of two rounds", falling),
    case("200 keys, without looking for races", unchecked),
    case("what 150 keys and 20 keys cost", cost, [150, 20], 2, side="cost"),
    case("a long sequence, then a short one", decode, [140, 3], 2, 2, 3, 5, side="aliasing"),
)


def more_whole(random: Random) -> Iterable[Case]:
    """Any lengths, heads and pages."""
    lengths = [random.randint(1, 160) for _ in range(2)]
    heads, size = random.choice([(1, 1), (2, 1), (4, 2)]), random.randint(1, 20)
    name = f"lengths {lengths}, {heads[0]} heads, pages of {size}"
    return [case(name, decode, lengths, *heads, size, random.randrange(10**6))]
