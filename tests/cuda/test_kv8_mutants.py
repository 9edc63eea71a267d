# ruff: noqa: E501 - a mutant is a line of the table
"""The kernels of a KV cache in 8 bits with one wrong line each (mutants), and at offsets beyond 2^31.

As in test_cuda_mutants.py each mutant is caught by the check that the table names: numbers and accesses in
`fast` and `check`, then the bytes and the wavefronts beside those of the right kernel. As in
test_cuda_offsets.py the far end of each tensor must give the bits of the near end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_oracle
import oracle
import pytest
import torch
from cases import Case, random
from coded_caches import build as coded
from coded_caches import empty, raw
from far import Attention, far_end, rows_beyond, same, untouched
from mutants import (
    BARRIER,
    BYTES,
    FLOAT32_ONLY,
    WAVEFRONTS,
    WRONG,
    compile_here,
    copy_sources,
    drop_lines,
    make_edits,
    verdict,
)
from torch import Tensor

from minillm.ops import kv_codes
from minillm.ops.cuda import CudaOps
from minillm.ops.reference import apply_rope
from minillm.ops.simt import KernelLibrary, SimtError, schedule
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing
from minillm.toolchain.sources import find_sources

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

# (kernel, name of the mutant, text, replacement, what catches it)
MUTANTS = [
    ("attention", "no barrier before the keys are read", f"{BARRIER}  // keys are found, and the previous tile's V has been read", "", WRONG),
    ("attention", "no barrier after K is written", f"k.unpack(p.codes, kv);\n    {BARRIER}", "k.unpack(p.codes, kv);", WRONG),
    ("attention", "no barrier before V is written", f"{BARRIER}  // K has been read; V takes its place", "", WRONG),
    ("attention", "no barrier after the weights", f"{BARRIER}\n\n    if (from >= end || row >= rows) continue;", "if (from >= end || row >= rows) continue;", WRONG),
    ("attention", "the key's scale forgotten", "scores[j] * k_scales[key] * p.scale", "scores[j] * p.scale", WRONG),
    ("attention", "the value's scale forgotten", "weight * v_scales[key]", "weight", WRONG),
    ("attention", "the key's scale for the value", "weight * v_scales[key]", "weight * k_scales[key]", WRONG),
    ("attention", "scaled weights are summed", "softmax.sum += weights[row][key]", "softmax.sum += weight", WRONG),
    ("attention", "scales of the page's first token", "v_cache) + head + page.scale(inside)", "v_cache) + head + page.scale(0)", WRONG),
    ("attention", "rows of codes without the place in the page", "= head + page.row(inside)", "= head + page.row(0)", WRONG),
    ("attention", "the first head's page", "page.head(slot / p.block_size, kv_head)", "page.head(slot / p.block_size, 0)", WRONG),
    ("attention", "a key past the end is read", "if (key < kv_len) {", "if (key <= kv_len) {", BYTES),
    ("attention", "codes of a key that is not there", "if (row >= 0) words[i]", "words[i]", "out of bounds"),
    ("attention", "bytes of a word backwards", "word >> 8 * place", "word >> 8 * (3 - place)", WRONG),
    ("attention", "codes without a sign", "static_cast<int8_t>(code)", "code", WRONG),
    ("attention", "fp8 read as int8", "if (codes == KvCodes::int8) return static_cast<float>", "if (true) return static_cast<float>", WRONG),
    ("attention", "mask a key short", "min(keys.last + 1 - tile_start, kKeyTile)", "min(keys.last - tile_start, kKeyTile)", WRONG),
    ("attention", "all tiles from the first", "int first_tile = ", "int first_tile = 0 * ", BYTES),
    ("attention", "tiles of the first row", "visible_keys(token_of(rows - 1), q_len", "visible_keys(token_of(0), q_len", WRONG),
    ("attention", "keys of the tile's first row", "int own = min(row, rows - 1);", "int own = 0;", WRONG),
    ("attention", "heads of the first group", "return kv_head * group + (tile.first_row + r) % group;", "return (tile.first_row + r) % group;", WRONG),
    ("attention", "a token for each row", "return (tile.first_row + r) / group;", "return tile.first_row + r;", "out of bounds"),
    ("attention", "a row too many is read", "if (r < rows)\n", "if (r <= rows)\n", "out of bounds"),
    ("attention", "rows past the tile written", "if (row >= rows) return;", "", "out of bounds"),
    ("attention", "old sums not rescaled", "out[i] *= factor;", "", WRONG),
    ("attention", "maximum of two lanes only", "step < kPerRow; step *= 2", "step < 2; step *= 2", WRONG),
    ("attention", "no padding", "kPitch = kDim + 1", "kPitch = kDim", WAVEFRONTS),
    ("attention", "weights transposed", "float weight = scaled[row][key];", "float weight = scaled[key % kRows][row];", WRONG),
    ("attention", "order of the sum by the number of rows", "float weight = scaled[row][key];", "int first = key; key = kRows == 8 ? from + end - 1 - first : first;\n      float weight = scaled[row][key];", WRONG),
    ("attention", "barrier in a branch", f"{BARRIER}  // K has been read; V takes its place", f"if (row < rows) {BARRIER}", "divergence"),
    ("rope", "turned the other way", "a * c - b * s", "a * c + b * s", WRONG),
    ("rope", "the rest rotated, too", "if (i >= 2 * half) return head[i];", "", WRONG),
    ("rope", "values rotated", "is_key ? half : 0, cos", "half, cos", WRONG),
    ("rope", "a negative slot is written", "if (slot < 0) return;", "", "out of bounds"),
    ("rope", "the first head's page", "at.head(block, head)", "at.head(block, 0)", WRONG),
    ("rope", "the first place of the page", "page + at.row(inside)", "page + at.row(0)", WRONG),
    ("rope", "the first scale of the page", "page + at.scale(inside)", "page + at.scale(0)", WRONG),
    ("rope", "half of a warp", "step = 16", "step = 8", WRONG),
    ("rope", "a number of the row too many", "i < p.head_dim; i += 32", "i <= p.head_dim; i += 32", "out of bounds"),
    ("rope", "a word too many", "w < p.head_dim / kWordCodes", "w <= p.head_dim / kWordCodes", "out of bounds"),
    ("rope", "infinity is a number", "highest < kInfinity ?", "highest <= kInfinity ?", WRONG),
    ("rope", "codes of a row with NaN", "if (scale > 0) word", "word", WRONG),
    ("rope", "every lane writes the scale", "if (lane == 0) *reinterpret", "*reinterpret", "race"),
    ("rope", "numbers cut, not rounded", "constexpr float magic = 12582912.0f;", "constexpr float magic = 12582912.0f; size = static_cast<float>(static_cast<int>(size));", WRONG),
    ("rope", "ties away from zero", "0x7FFFF + (bits >> 20 & 1)", "0x80000", WRONG),
    ("rope", "fp8 without subnormal numbers", "size < 0x1p-6f ?", "size < 0x1p-9f ?", WRONG),
    ("rope", "fp8 without a sign", " | (static_cast<uint32_t>(__float_as_int(x)) >> 24 & 128)", "", WRONG),
    ("rope", "fp8 with the range of int8", "? 127.0f : 448.0f", "? 127.0f : 127.0f", WRONG),
    ("rope", "codes past the largest", "fminf(fabsf(x), largest(codes))", "fabsf(x)", WRONG),
]  # fmt: skip
# (kernel, what is kept in 32 bits, text, replacement)
OFFSETS = [
    ("attention", "bytes of the cache", "const int64_t* rows) {", "const int64_t* far) {\n    int rows[kKeyTile];\n    for (int i = 0; i < kKeyTile; i++) rows[i] = static_cast<int>(far[i]);"),
    ("attention", "bytes before a scale", "int64_t head = page.head(slot / p.block_size, kv_head), inside", "int head = (int)page.head(slot / p.block_size, kv_head), inside"),
    ("attention", "rows of q", "(p.q)[(start + token_of(r)) * p.q_stride", "(p.q)[(int)((start + token_of(r)) * p.q_stride)"),
    ("attention", "rows of out", "(p.out) + ((start + token_of(row)) * p.num_heads + head_of(row)) * kDim", "(p.out) + (int)(((start + token_of(row)) * p.num_heads + head_of(row)) * kDim)"),
    ("rope", "bytes of the caches", "cache + at.head(block, head)", "cache + (int)at.head(block, head)"),
    ("rope", "rows of q", "token * p.q_stride", "(int)(token * p.q_stride)"),
    ("rope", "rows of q's result", "token * q_size", "(int)(token * q_size)"),
    ("rope", "rows of k", "token * p.k_stride", "(int)(token * p.k_stride)"),
    ("rope", "rows of v", "token * p.v_stride", "(int)(token * p.v_stride)"),
    ("rope", "rows of cosines", "p.cos + p.positions[token] * half", "p.cos + (int)(p.positions[token] * half)"),
    ("rope", "rows of sines", "p.sin + p.positions[token] * half", "p.sin + (int)(p.positions[token] * half)"),
]  # fmt: skip
FILES = {
    "attention": ("attention_q1.cu", "kv_codes.h", "codes.h", "paging.h", "query_tiles.h"),
    "rope": ("rope_and_codes.cu", "kv_codes.h", "codes.h"),
}
CODES = {"int8": 1, "fp8": 2}
CASE = Case([(1, 40), (20, 67), (2, 2), (3, 150)], heads=4, kv_heads=2, dim=32, block_size=4, window=50)


class Ops:
    """The layout of the kernels, without the library of all of them."""

    view_keys = staticmethod(CudaOps.view_keys)


def attend(
    library: KernelLibrary,
    case: Case,
    kind: str,
    softcap: float,
    keys: int | None = None,
    rows: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(what the kernel gives, what is exact); with `keys` 0, rows that fill up a batch; `rows` of CASE's queries."""
    built = coded(Ops(), case, torch.float32, kind)
    if rows is not None:
        built = built._replace(q=CASE.build(torch.float32)[0][rows])
    meta, sinks = built.meta, random(case.heads, seed=8)
    kv_len = meta.kv_len if keys is None else torch.full_like(meta.kv_len, keys)
    out = torch.full(built.q.shape, 7.0)
    library.run(
        "run", q=built.q, k_cache=built.cache.k, v_cache=built.cache.v, out=out, block_table=meta.block_table,
        query_start=meta.query_start, kv_len=kv_len, num_seqs=len(case.seqs), max_blocks=meta.block_table.shape[1],
        num_tokens=len(built.q), q_stride=built.q.stride(0), num_heads=case.heads, num_kv_heads=case.kv_heads,
        head_dim=case.dim, block_size=case.block_size, scale=0.2, window=case.window or 0, softcap=softcap,
        sinks=sinks, codes=CODES[kind],
    )  # fmt: skip
    if keys is not None:
        return out, torch.zeros(out.shape, dtype=torch.float64)
    if softcap:
        return out, family_oracle.variant_attention(
            case, built.q, *built.numbers, built.tables, 0.2, softcap, sinks
        )
    lens = [n for n, _ in case.seqs], [n for _, n in case.seqs]
    return out, oracle.paged_attention(built.q, *built.numbers, built.tables, *lens, 0.2, case.window)


def attention(library: KernelLibrary) -> tuple[Tensor, Tensor]:
    """Both kinds of codes; the last row of each sequence has the same bits in a block of few rows, alone."""
    found, is_same = [], True
    for kind in CODES:
        found.append(attend(library, CASE, kind, 0.0))
        last = found[-1][0][[0, 20, 22, 25]]
        alone = attend(
            library, Case([(1, n) for _, n in CASE.seqs], 4, 2, 32, 4, 50), kind, 0.0, rows=[0, 20, 22, 25]
        )
        is_same &= torch.equal(alone[0], last)
        found.append(alone)
    found += [attend(library, CASE, "int8", 0.7), attend(library, CASE, "fp8", 0.0, keys=0)]
    result = [torch.cat([pair[i].double() for pair in found]).flatten() for i in (0, 1)]
    flag = torch.tensor([float(is_same)], dtype=torch.float64)
    return torch.cat([result[0].nan_to_num(9e9), flag]), torch.cat([result[1], torch.ones(1)])


def rope(library: KernelLibrary) -> tuple[Tensor, Tensor]:
    """Every byte of both caches. The rows of v have zeros, ties, NaN, infinity and tiny numbers."""
    tokens, heads, dim, rotary, size = 9, 3, 36, 24, 5
    q, k, v = random(tokens, 4, dim), random(tokens, heads, dim, seed=1), random(tokens, heads, dim, seed=2)
    v[0], v[1, 0, 5], v[2, 1, 7], v[3], v[4, 1, 0] = 0, math.nan, -math.inf, v[3] * 1e-43, -0.0
    v[4, 0] = torch.linspace(-127, 127, dim).mul(2).round() / 2
    v[5, 0] = torch.linspace(1, 448, dim).round()
    v[5, 1] = torch.arange(dim).add(0.5) * 2.0**-9
    v[5, 1, 0] = 448
    v[6, 2] = torch.linspace(1, 671, dim) * 1.4e-45  # the scale of fp8 rounds down to one step
    angles = random(20, rotary // 2)
    positions, slots = torch.arange(tokens) + 3, torch.tensor([7, 0, 9, -1, 12, 3, 14, 5, 1])
    found, exact = [], []
    for kind, number in CODES.items():
        caches, q_out = empty((3, size, heads, dim), kind), torch.zeros(q.shape)
        expected = empty((3, size, heads, dim), kind)
        library.run(
            "run", q=q, k=k, v=v, cos=angles.cos(), sin=angles.sin(), positions=positions, slots=slots, q_out=q_out,
            k_cache=caches.k, v_cache=caches.v, num_tokens=tokens, num_heads=4, num_kv_heads=heads, head_dim=dim,
            rotary_dim=rotary, block_size=size, codes=number,
        )  # fmt: skip
        cos, sin = angles.cos()[positions], angles.sin()[positions]
        turned = [torch.cat([apply_rope(x[..., :rotary], cos, sin), x[..., rotary:]], dim=-1) for x in (q, k)]
        kept = slots >= 0
        for cache, rows in zip(expected, (turned[1], v), strict=True):
            kv_codes.write_rows(kv_codes.rows(cache), slots[kept], rows[kept])
        for mine, theirs in zip((*caches, q_out), (*expected, turned[0]), strict=True):
            found.append(bytes_of(mine)), exact.append(bytes_of(theirs))
    return torch.cat(found).double(), torch.cat(exact).double()


def bytes_of(tensor: Tensor) -> Tensor:
    return tensor.flatten() if tensor.dtype == torch.float32 else without_nan(raw(tensor).flatten())


def without_nan(codes: Tensor) -> Tensor:
    """Bytes of which each NaN scale has the same four."""
    words = codes.view(torch.float32)
    return torch.where(words.isnan() & (words.view(torch.int32) != -1), 0.5, words).view(torch.uint8).float()


RUNS: dict[str, Callable[[KernelLibrary], tuple[Tensor, Tensor]]] = {"attention": attention, "rope": rope}


def build(kernel: str, folder: Path, old: str = "", new: str = "") -> KernelLibrary:
    """The kernel with `old` replaced in the first of its files that has it, for float32 and heads of 32 only."""
    copy_sources(folder, (*FILES[kernel], "dispatch.h"))
    changed = next((name for name in FILES[kernel] if old in (folder / name).read_text()), FILES[kernel][0])
    make_edits(folder, [(changed, old, new)] if old else [])
    drop_lines(folder / "dispatch.h", (*FLOAT32_ONLY, *(f"case {dim}:" for dim in (64, 96, 128, 256))))
    flags = [f'-DKERNEL="{FILES[kernel][0]}"', *(["-DIS_ATTENTION"] if kernel == "attention" else [])]
    return compile_here(folder, "kv8.cu", flags)


def is_right(found: Tensor, exact: Tensor) -> bool:
    return oracle.error(found, exact) <= 2e-6


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KernelLibrary]:
    """The unchanged kernels."""
    return {kernel: build(kernel, tmp_path_factory.mktemp(kernel)) for kernel in FILES}


@pytest.mark.parametrize("kernel", RUNS)
def test_the_right_kernel_survives(kernel: str, right: dict[str, KernelLibrary]) -> None:
    assert verdict(RUNS[kernel], right[kernel], right[kernel], is_right) == "survived"


@pytest.mark.parametrize(
    ("kernel", "old", "new", "caught_by"),
    [pytest.param(k, old, new, by, id=f"{k}: {what}") for k, what, old, new, by in MUTANTS],
)
def test_each_mutant_is_caught(
    kernel: str, old: str, new: str, caught_by: str, right: dict[str, KernelLibrary], tmp_path: Path
) -> None:
    mutant = build(kernel, tmp_path, old, new)
    assert verdict(RUNS[kernel], mutant, right[kernel], is_right) == caught_by


def test_each_barrier_has_a_mutant() -> None:
    (source,) = find_sources("cuda", "attention_q1.cu")
    dropped = [old for kernel, _, old, new, _ in MUTANTS if BARRIER in old and BARRIER not in new]
    assert len(dropped) == source.read_text().count(BARRIER) == 4


# ---- offsets beyond 2^31 ---------------------------------------------------------------------------


class Coded(Attention):
    """The cache is in int8: its far end lies beyond 2^31 bytes."""

    def __init__(self, library: KernelLibrary) -> None:
        super().__init__(library)
        plain, self.caches = self.caches, []
        for numbers in plain:
            cache = empty(tuple(numbers.shape)).k
            slots = torch.arange(numbers.shape[0] * numbers.shape[1])
            kv_codes.write_rows(kv_codes.rows(cache), slots, numbers.flatten(0, 1))
            self.caches.append(cache)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "codes": 1}


def far_rope(library: KernelLibrary) -> bool:
    """The last token; its position and its slot are the last ones."""
    angle = random(1, 16, seed=3)
    given = random(1, 2, 32), random(1, 1, 32, seed=1), random(1, 1, 32, seed=2), angle.cos(), angle.sin()

    def run(rows: int) -> list[Tensor]:
        positions, slots = (untouched(rows, dtype=torch.int64) for _ in range(2))
        positions[-1] = slots[-1] = rows - 1
        caches = [untouched(rows, 1, 1, 36, dtype=torch.int8) for _ in range(2)]
        q_out = untouched(rows, 2, 32)
        names = zip(("q", "k", "v", "cos", "sin"), (far_end(t, rows) for t in given), strict=True)
        library.run(
            "run", **dict(names), positions=positions, slots=slots, q_out=q_out, k_cache=caches[0], v_cache=caches[1],
            num_tokens=rows, num_heads=2, num_kv_heads=1, head_dim=32, rotary_dim=32, block_size=1, codes=1,
        )  # fmt: skip
        return [q_out, *caches]

    with schedule(last_blocks=1):
        return same(run(1), run(rows_beyond(16)))


FAR_RUNS = {"attention": lambda library: Coded(library).is_right(), "rope": far_rope}


def far_verdict(kernel: str, library: KernelLibrary) -> str:
    """What is noticed at the far end."""
    try:
        return "nothing" if FAR_RUNS[kernel](library) else WRONG
    except SimtError as error:
        return error.kind


needs_far_memory = pytest.mark.skipif(
    sanitizing(), reason="needs memory that is not there until it is touched"
)


@needs_far_memory
@pytest.mark.parametrize("kernel", FAR_RUNS)
def test_offsets_beyond_two_to_the_31(kernel: str, right: dict[str, KernelLibrary]) -> None:
    assert far_verdict(kernel, right[kernel]) == "nothing"


@needs_far_memory
@pytest.mark.parametrize(
    ("kernel", "old", "new"), [pytest.param(k, o, n, id=f"{k}: {w}") for k, w, o, n in OFFSETS]
)
def test_an_offset_in_32_bits_is_noticed(kernel: str, old: str, new: str, tmp_path: Path) -> None:
    assert far_verdict(kernel, build(kernel, tmp_path, old, new)) in (WRONG, "out of bounds")
