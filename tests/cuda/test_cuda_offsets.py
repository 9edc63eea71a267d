# ruff: noqa: E501 - a mutant is a line of the table
"""Offsets beyond 2^31 numbers, in the simulator: tensors of 8 GiB of which a few pages are ever touched.

The launcher of linear is changed so that it runs its last block alone. Each kernel is run beside mutants that
keep an offset in 32 bits: they read or write elsewhere.
"""

from __future__ import annotations

import mmap
import sys

import pytest
import torch
from cases import random
from test_cuda_mutants import build
from torch import Tensor

from minillm.ops.simt import KernelLibrary, SimtError
from minillm.toolchain.sanitizer import sanitizing

if not sys.platform.startswith("linux") or sanitizing():
    pytest.skip("needs memory that is not there until it is touched", allow_module_level=True)

FAR = 2**31
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # older versions of Python do not name it
LAST_BLOCK = [
    ("dim3 grid(ceil_div(p.out, kTile), ceil_div(p.rows, kTile));", "dim3 grid(1, 1);"),
    ("blockIdx.y", "(p.rows / kTile)"),
    ("blockIdx.x", "(p.out / kTile)"),
]
# (kernel, what is kept in 32 bits, line or part of it, what stands there instead)
MUTANTS = [
    ("attention_v2", "rows of the cache", "int64_t at = (slots[key]", "int at = (int)(slots[key]"),
    ("attention_v2", "rows of q", "static_cast<const T*>(p.q) + at * p.q_stride", "static_cast<const T*>(p.q) + (int)(at * p.q_stride)"),
    ("rope_and_cache", "rows of k's cache", "(p.k_cache) + slot * kv_size", "(p.k_cache) + (int)(slot * kv_size)"),
    ("rope_and_cache", "rows of v's cache", "(p.v_cache) + slot * kv_size", "(p.v_cache) + (int)(slot * kv_size)"),
    ("linear", "rows of x and of the weight", "static_cast<int64_t>(first + row) * columns", "(first + row) * columns"),
    ("linear", "rows of y", "static_cast<int64_t>(row) * p.out", "row * p.out"),
    ("copy_blocks", "source", "p.source[pair] * words", "(int)(p.source[pair] * p.block_bytes) / (int)sizeof(Word)"),
    ("copy_blocks", "destination", "p.destination[pair] * words", "(int)(p.destination[pair] * p.block_bytes) / (int)sizeof(Word)"),
]  # fmt: skip


def untouched(*shape: int) -> Tensor:
    """Zeros that take no memory until they are written."""
    count = 1
    for size in shape:
        count *= size
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return torch.frombuffer(mmap.mmap(-1, 4 * count, flags=flags), dtype=torch.float32).view(shape)


def attention(run: KernelLibrary, caches: list[Tensor], q: Tensor, blocks: list[int]) -> Tensor:
    """Three rows of a sequence of 40 keys in these blocks."""
    out = torch.zeros(3, 2, 32)
    run.run(
        "run", q=q, k_cache=caches[0], v_cache=caches[1], out=out, block_table=torch.tensor([blocks], dtype=torch.int32),
        query_start=torch.tensor([0, 3], dtype=torch.int32), kv_len=torch.tensor([40], dtype=torch.int32), num_seqs=1,
        max_blocks=3, num_tokens=3, q_stride=q.stride(0), num_heads=2, num_kv_heads=1, head_dim=32, block_size=16,
        scale=0.2, window=0, softcap=0.0, sinks=torch.zeros(2),
    )  # fmt: skip
    return out


def attention_v2(library: KernelLibrary) -> bool:
    near, q = [random(3, 16, 1, 32, seed=s) for s in (1, 2)], random(3, 2, 32, seed=3)
    count = FAR // (16 * 32) + 2
    far = [untouched(count, 16, 1, 32) for _ in range(2)]
    for cache, small in zip(far, near, strict=True):
        cache[-3:] = small
    apart = untouched(FAR + 64).as_strided((3, 2, 32), (FAR // 2, 32, 1))
    apart.copy_(q)
    expected = attention(library, near, q, [2, 0, 1])
    blocks = [count - 1, count - 3, count - 2]
    return torch.equal(attention(library, far, q, blocks), expected) and torch.equal(
        attention(library, near, apart, [2, 0, 1]), expected
    )


def rope_and_cache(library: KernelLibrary) -> bool:
    q, k, v = random(1, 2, 32), random(1, 1, 32, seed=1), random(1, 1, 32, seed=2)
    slots, caches = FAR // 32 + 2, [untouched(FAR // 32 + 2, 32) for _ in range(2)]
    library.run(
        "run", q=q, k=k, v=v, cos=torch.ones(1, 16), sin=torch.zeros(1, 16), positions=torch.tensor([0]),
        slots=torch.tensor([slots - 1]), q_out=torch.zeros(1, 2, 32), k_cache=caches[0], v_cache=caches[1],
        num_tokens=1, num_heads=2, num_kv_heads=1, head_dim=32, rotary_dim=32,
    )  # fmt: skip
    return torch.equal(caches[0][-1], k.flatten()) and torch.equal(caches[1][-1], v.flatten())


def linear(library: KernelLibrary) -> bool:
    """One row too many of x, then of the weight: of the last block each, which has one row or column."""
    size, is_right = 33, True
    for rows, out in ((FAR // 32 + 1, size), (1, FAR // 32 + 1)):
        x, weight, y = untouched(rows, size), untouched(out, size), untouched(rows, out)
        x[-1], weight[-1] = random(size), random(size, seed=1)
        bias = untouched(out)
        library.run("run", x=x, weight=weight, bias=bias, y=y, rows=rows, **{"in": size}, out=out)
        total = torch.zeros(())
        for a, b in zip(x[-1], weight[-1], strict=True):
            total = torch.addcmul(total.double(), a.double(), b.double()).float()
        is_right &= abs(float(y[-1, -1] - total)) < 1e-5 and float(y[-1, -1]) != 0
    return is_right


def copy_blocks(library: KernelLibrary) -> bool:
    """To the far end, and back."""
    count, size = FAR // 4096 + 2, 4096
    cache, small = untouched(count, size), random(size)
    cache[0] = small
    for source, destination in ((0, count - 1), (count - 1, 1)):
        numbers = torch.tensor([source]), torch.tensor([destination])
        library.run(
            "run", cache=cache, source=numbers[0], destination=numbers[1], block_bytes=4 * size, count=1
        )
    return torch.equal(cache[1], small) and torch.equal(cache[-1], small)


RUNS = {
    "attention_v2": attention_v2,
    "rope_and_cache": rope_and_cache,
    "linear": linear,
    "copy_blocks": copy_blocks,
}


def made(kernel: str, folder, old: str = "", new: str = "") -> KernelLibrary:
    edits = LAST_BLOCK if kernel == "linear" else []
    return build(kernel, folder, old, new, edits)


@pytest.mark.parametrize("kernel", RUNS)
def test_offsets_beyond_two_to_the_31(kernel, tmp_path):
    assert RUNS[kernel](made(kernel, tmp_path))


@pytest.mark.parametrize(
    ("kernel", "old", "new"), [pytest.param(k, o, n, id=f"{k}: {w}") for k, w, o, n in MUTANTS]
)
def test_an_offset_in_32_bits_is_noticed(kernel, old, new, tmp_path):
    assert seen(kernel, made(kernel, tmp_path, old, new)) in ("wrong numbers", "out of bounds")


def seen(kernel: str, library: KernelLibrary) -> str:
    """What is noticed of a mutant."""
    try:
        return "nothing" if RUNS[kernel](library) else "wrong numbers"
    except SimtError as error:
        return error.kind
