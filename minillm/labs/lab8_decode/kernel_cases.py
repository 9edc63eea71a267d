"""The cases of lab 8: each section of the kernel, the whole kernel, and an engine with it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.grader.cuda_kernels import Kernels, edited
from minillm.labs.grader.cuda_lab import Section
from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.tiny_model import random_tensor, tiny_llm
from minillm.ops.contract import AttentionMetadata
from minillm.ops.reference import ReferenceOps

SOURCE = Path(__file__).with_name("lab8.cu")
DIM, THREADS = 8, 128


def wrong(diagnosis: str, old: str, new: str) -> Mistake:
    """The finished file with `old` replaced."""
    return Mistake(diagnosis, edited(SOURCE, old, new))


def section(name: str) -> Section:
    """The section that is the body of function `name`."""
    return Section(str(SOURCE), name)


def case(name: str, run: Any, *arguments: Any) -> Case:
    """A case that calls `run` with these arguments."""
    return Case(name, partial(run, *arguments))


def slots(table: list[int], block_size: int, kernels: Kernels) -> Tensor:
    """The slots of all keys that fit in the table."""
    found = torch.zeros(len(table) * block_size, dtype=torch.int32)
    table_tensor = torch.tensor(table, dtype=torch.int32)
    kernels.run("run_slots", table=table_tensor, slots=found, keys=len(found), block_size=block_size)
    return found


def dots(kernels: Kernels) -> list[Any]:
    """128 dot products, and whether the keys were read 16 bytes at a time."""
    found = torch.zeros(THREADS)
    kernels.run("run_dot", q=random_tensor(1, DIM), keys=random_tensor(2, THREADS, DIM), sums=found)
    # A wide access of a warp fetches each sector once; eight narrow ones fetch it up to eight times.
    fetched = 32 * kernels.counted.global_read_sectors
    return [found, "wide loads" if fetched < 4 * THREADS * DIM * 4 else "narrow loads"]


def maxima(rounds: int, kernels: Kernels) -> Tensor:
    """Maxima in different warps; in the last rounds all values are negative."""
    values = random_tensor(3, rounds, THREADS) - 10
    values[0, 100] = 5
    found = torch.zeros(rounds, THREADS)
    kernels.run("run_max", values=values, found=found, rounds=rounds)
    return found


def values(factor: float, kernels: Kernels) -> list[Tensor]:
    """Columns and sums after five keys in a mixed order."""
    out, sums = torch.zeros(DIM), torch.zeros(DIM)
    offsets = torch.tensor([3, 0, 4, 1, 5], dtype=torch.int32) * DIM
    weights = random_tensor(4, 5).abs()
    kernels.run(
        "run_values",
        weights=weights,
        values=random_tensor(5, 6, DIM),
        offsets=offsets,
        out=out,
        sums=sums,
        count=5,
        factor=factor,
    )
    return [out, sums]


def attend(
    kernels: Kernels, q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, kv_len: Tensor, scale: float
) -> Tensor:
    """The student's kernel on a batch of sequences with one row each."""
    out = torch.zeros(q.shape)
    kernels.run(
        "run_decode",
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


def decode(lengths: list[int], heads: int, kv_heads: int, block_size: int, kernels: Kernels) -> Tensor:
    """Sequences over shuffled pages; slots that no sequence owns hold NaN."""
    counts = [-(-n // block_size) for n in lengths]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(0)).tolist()
    table = torch.full((len(lengths), max(counts)), order.pop(), dtype=torch.int32)
    caches = [torch.full((len(order) + 1, block_size, kv_heads, DIM), math.nan) for _ in range(2)]
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        pages = [order.pop() for _ in range(count)]
        table[i, :count] = torch.tensor(pages)
        for key in range(length):
            for c, cache in enumerate(caches):
                row = random_tensor(1000 * c + 100 * i + key, kv_heads, DIM)
                cache[pages[key // block_size], key % block_size] = row
    q = random_tensor(6, len(lengths), heads, DIM)
    return attend(kernels, q, caches[0], caches[1], table, torch.tensor(lengths, dtype=torch.int32), 0.5)


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
    case("one short sequence", decode, [5], 1, 1, 4),
    case("two heads share a kv head, lengths 1, 7 and 40", decode, [1, 7, 40], 2, 1, 4),
    case("more than one round of 128 keys", decode, [128, 129, 300], 1, 1, 16),
)
