"""Lab 8: paged decode attention in CUDA. Block tables on the GPU, reductions over a block, one row."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.cuda import Kernels, edited
from minillm.labs.lab import Case, Mistake, Task
from minillm.labs.sections import CudaLab, Section
from minillm.labs.tiny import random_tensor, tiny_llm
from minillm.ops.contract import AttentionMetadata
from minillm.ops.reference import ReferenceOps

FILE = "lab8.cu"
DIM, THREADS = 8, 128


def wrong(diagnosis: str, old: str, new: str) -> Mistake:
    """The finished file with `old` replaced."""
    return Mistake(diagnosis, edited(FILE, old, new))


def case(name: str, run: Any, *arguments: Any) -> Case:
    """A case that gives `run` its arguments."""
    return Case(name, partial(run, *arguments))


# --- the cases ----------------------------------------------------------------------------------------


def slots(table: list[int], block_size: int, kernels: Kernels) -> Tensor:
    """The slots of all keys that the table has room for."""
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
    """Maxima that lie in every warp in turn, the last round all negative."""
    values = random_tensor(3, rounds, THREADS) - 10
    values[0, 100] = 5
    found = torch.zeros(rounds, THREADS)
    kernels.run("run_max", values=values, found=found, rounds=rounds)
    return found


def values(factor: float, kernels: Kernels) -> list[Tensor]:
    """Columns and sums after five keys that lie scattered."""
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
    """Sequences over shuffled pages; slots that nobody owns hold NaN."""
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
    """Texts of an engine whose decode attention is the student's kernel, prefill the reference's."""
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

# --- the lab --------------------------------------------------------------------------------------------

LAB = CudaLab(
    8,
    "decode",
    "paged decode attention in CUDA",
    (
        Task(
            "8.1",
            "from a position to its slot, on the GPU",
            15,
            Section(FILE, "slot_of"),
            (case("pages of 4", slots, [5, 2, 7], 4), case("pages of 1", slots, [4, 0, 2], 1)),
            (
                wrong(
                    "the block table is not looked at: position is not slot",
                    "table[key / block_size] * block_size + key % block_size",
                    "key",
                ),
                wrong(
                    "the place within the page is missing: add key % block_size",
                    "table[key / block_size] * block_size + key % block_size",
                    "table[key / block_size] * block_size",
                ),
            ),
        ),
        Task(
            "8.2",
            "a dot product, 16 bytes at a time",
            10,
            Section(FILE, "dot"),
            (case("128 keys", dots),),
            (
                wrong(
                    "right, but read 4 bytes at a time: load_wide<Vec<float, 4>> reads 16",
                    "sum += q[d + j] * four.v[j];",
                    "sum += q[d + j] * (four.v[j] = key[d + j]);",
                ),
                wrong("half of the components are left out", "d < kDim; d += 4", "d < kDim / 2; d += 4"),
            ),
        ),
        Task(
            "8.3",
            "the maximum of a block",
            20,
            Section(FILE, "block_max"),
            (case("one round", maxima, 1), case("three rounds, one after the other", maxima, 3)),
            (
                wrong(
                    "the maximum is that of one warp: the block has four",
                    "value = fmaxf(value, scratch[warp]);",
                    "value = fmaxf(value, scratch[warp] - 1e9f);",
                ),
                wrong(
                    "a barrier is missing: the next call overwrites scratch while others still read it",
                    "  __syncthreads();\n  if (threadIdx.x % 32 == 0)",
                    "  if (threadIdx.x % 32 == 0)",
                ),
            ),
        ),
        Task(
            "8.4",
            "weights times values, through the pages",
            15,
            Section(FILE, "add_values"),
            (case("factor 1", values, 1.0), case("factor 1/4", values, 0.25)),
            (
                wrong("the output is not shrunk by the factor", "  out *= factor;\n", ""),
                wrong("the sum is not shrunk by the factor", "  sum *= factor;\n", ""),
            ),
        ),
        Task(
            "8.5",
            "the kernel: rounds of 128 keys",
            30,
            Section(FILE, "decode"),
            WHOLE,
            (
                wrong(
                    "query head h reads kv head h / (num_heads / num_kv_heads)",
                    "kv_head = head / (num_heads / num_kv_heads);",
                    "kv_head = head % num_heads;",
                ),
                wrong("a key past kv_len is read: its slot may hold NaN", "key < keys)", "key <= keys)"),
                wrong(
                    "only the first 128 keys are seen",
                    "first < keys; first += kThreads",
                    "first < 1; first += kThreads",
                ),
                wrong("the result is not divided by the sum of the weights", "column / sum", "column"),
            ),
        ),
        Task(
            "8.6",
            "an engine that decodes with your kernel says the same",
            10,
            None,
            (*WHOLE, case("three texts of 12 tokens", generate)),
        ),
    ),
)
