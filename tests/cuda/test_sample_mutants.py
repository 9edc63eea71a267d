# ruff: noqa: E501 - a mutant is a line of the table
"""sample.cu, its headers and finite.cu with one wrong line each: each mutant is caught by the named check.

`sample` is built with small slices, few pivots and little scratch memory. So rows of 300 ids have three slices,
the search takes several rounds, and 21 rows take five rounds of launches. The memory of the results and of
the scratch begins as 0xff in each byte, which is NaN.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cases import random
from mutants import (
    BARRIER,
    BYTES,
    FLOAT32_ONLY,
    WRONG,
    compile_here,
    copy_sources,
    drop_lines,
    make_edits,
    verdict,
)
from torch import Tensor

from minillm import SamplingParams
from minillm.ops.reference import ReferenceOps
from minillm.ops.sampling import SamplingBatch, noise_key
from minillm.ops.simt import KernelLibrary
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sources import find_sources

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

FILES = {"sample": ("sample.cu", "slice.h", "sort.h", "search.h", "noise.h"), "finite": ("finite.cu",)}
SMALL = [
    ("slice.h", "kSlice = 4096, kSliceThreads = 512", "kSlice = 128, kSliceThreads = 64"),
    ("search.h", "kPivots = 8", "kPivots = 2"),
    ("sample.cu", "kScratchBytes = 1 << 26", "kScratchBytes = 30000"),
    ("kernels.h", "kMaxTokenIds = 1 << 21", "kMaxTokenIds = 1 << 12"),
    # The search of a mutant may not end.
    (
        "search.h",
        "while ((left = r.left()) > 1) {",
        "for (int i = 0; (left = r.left()) > 1 && i < 99; i++) {",
    ),
]

# (file, name of the mutant, text, replacement, what catches it)
MUTANTS = [
    ("slice.h", "no barrier between two bests", f"{BARRIER}  // the previous call's results have been read", "", WRONG),
    ("slice.h", "no barrier after the bests", f"ids[threadIdx.x / 32] = best.id;\n  {BARRIER}", "ids[threadIdx.x / 32] = best.id;", WRONG),
    ("slice.h", "no barrier after zeroing", f"seen[i] = 0;\n  {BARRIER}", "seen[i] = 0;", "race"),
    ("slice.h", "no barrier after the marks", f"seen[place] = 1;\n  }}\n  {BARRIER}", "seen[place] = 1;\n  }", "race"),
    ("slice.h", "ids of the next slice are seen", "place >= 0 && place < kSlice", "place >= 0", "out of bounds"),
    ("slice.h", "ids of the slice before are seen", "place >= 0 && place < kSlice", "place < kSlice", "out of bounds"),
    ("slice.h", "ids the tokenizer lacks are drawn", "left = w.p.num_token_ids - mine.first", "left = w.p.vocab_size - mine.first", WRONG),
    ("slice.h", "penalty the wrong way", "value > 0 ?", "value <= 0 ?", WRONG),
    ("slice.h", "seen by the row before", "w.p.seen_end[row.index - 1] : 0", "w.p.seen_end[row.index - 1] - 1 : 0", "out of bounds"),
    ("slice.h", "rows of the first round again", "index(w.p.first_row + part)", "index(part)", WRONG),
    ("slice.h", "broken rows are drawn", "finite = !w.p.finite || w.p.finite[index];", "finite = true;", WRONG),
    ("slice.h", "one slice too few", "slice < w.slices; slice += kSliceThreads)\n    best", "slice + 1 < w.slices; slice += kSliceThreads)\n    best", WRONG),
    ("slice.h", "top-p alone cuts nothing", "|| top_p < 1);", ");", WRONG),
    ("sort.h", "no barrier between two stages", f"{BARRIER}  // the next stage pairs other places", "", WRONG),
    ("sort.h", "no barrier after the sums", f"sums[warp] = sum;\n  {BARRIER}", "sums[warp] = sum;", "race"),
    ("sort.h", "ties go to the highest id", "| ~static_cast<uint32_t>(id)", "| static_cast<uint32_t>(id)", WRONG),
    ("sort.h", "-0 below +0", "x = {value + 0.0f};", "x = {value};", WRONG),
    ("sort.h", "rises instead of falls", "falls = !(one & width)", "falls = one & width", WRONG),
    ("sort.h", "last merge forgotten", "width <= size", "width < size", WRONG),
    ("sort.h", "masses of the slice's own warp only", "i < warp; i++) earlier", "i < 0; i++) earlier", BYTES),
    ("sort.h", "masses without their own id", "masses[begin + i] = before + sums[i]", "masses[begin + i] = before + (i ? sums[i - 1] : 0)", BYTES),
    ("search.h", "no barrier after the total", f"{BARRIER}  // the sums are written", "", "divergence"),
    ("search.h", "no barrier after the pivots", f"{BARRIER}  // the pivots are written, and all threads have read the ranges", "", "out of bounds"),
    ("search.h", "no barrier after the ranges", f"{BARRIER}  // the ranges are written, and all threads have read the pivots", "", "divergence"),
    ("search.h", "one id too few", ">= enough", "> enough", WRONG),
    ("search.h", "a pivot above itself", "return {ranks[slice * kSlice + place], slice, place + 1};", "return {ranks[slice * kSlice + place], slice, place};", BYTES),
    ("search.h", "the pivot's own slice is searched", "if (slice == pivot.slice) return pivot.count;", "", BYTES),
    ("search.h", "mass of one id more", "slice * kSlice + count - 1]", "slice * kSlice + count]", WRONG),
    ("search.h", "the lowest pivot with enough", "ranks[i] > ranks[lower])) lower = i;", "ranks[i] < ranks[lower])) lower = i;", WRONG),
    ("sample.cu", "no barrier before the sort", f"{BARRIER}  // the ranks are written", "", WRONG),
    ("sample.cu", "no barrier before the search", f"{BARRIER}  // the ranges are written", "", "uninitialised"),
    ("sample.cu", "no barrier between two searches", f"{BARRIER}  // the ranges have been read", "", "divergence"),
    ("sample.cu", "padding above every rank", "ranks[i] = 0;", "ranks[i] = ~uint64_t{0};", WRONG),
    ("sample.cu", "the slice's own maximum", "best_of_row(w, w.highest, row.part).score", "w.highest[static_cast<int64_t>(row.part) * w.slices + slice].score", WRONG),
    ("sample.cu", "nucleus of another sum", "enough = row.top_p * total", "enough = row.top_p", WRONG),
    ("sample.cu", "nucleus of all ids", "high[slice] = ranges.size(slice);", "high[slice] = ranges.size(slice);\n  if (row.top_p < 1) row.top_k = 0;", WRONG),
    ("sample.cu", "top-k below the threshold too", "rank_of(value, id) < lowest", "rank_of(value, id) + 1 < lowest", WRONG),
    ("sample.cu", "min-p forgotten", "value < least ||", "", WRONG),
    ("sample.cu", "greedy rows drawn", "row.is_drawn() ? w.drawn : w.highest", "w.drawn", WRONG),
    ("sample.cu", "every row is sorted", "if (!row.is_cut(w)) return;\n  while", "while", BYTES),
    ("sample.cu", "a row of slices too few", "highest + parts,", "highest + parts / 2,", WRONG),
    ("sample.cu", "one slice too few", "ceil_div(num_token_ids, kSlice)", "num_token_ids / kSlice", WRONG),
    ("noise.h", "noise of the neighbour", "static_cast<uint64_t>(id) + 1)", "static_cast<uint64_t>(id))", WRONG),
    ("noise.h", "a bound below the noise", "(52 - exponent)", "(50 - exponent)", WRONG),
    ("finite.cu", "no barrier after the warps", f"{BARRIER}", "", WRONG),
    ("finite.cu", "infinity is finite", "x <= kLargest && x >= -kLargest", "x <= kLargest || x > kLargest", WRONG),
    ("finite.cu", "half of a warp", "step = 16", "step = 8", WRONG),
    ("finite.cu", "the end of a row is not read", "i < p.size; i +=", "i + 1 < p.size; i +=", WRONG),
    ("finite.cu", "the start of a row is not read", "i < head; i +=", "i + 1 < head; i +=", WRONG),
    ("finite.cu", "a number too many", "(p.size - head) / kWide", "(p.size - head) / kWide + 1", "out of bounds"),
]  # fmt: skip


def inputs() -> tuple[Tensor, SamplingBatch, Tensor]:
    """21 rows of 310 ids, of which the tokenizer has 300; a row that is not finite; values that tie, -0 too."""
    options = [
        {"top_k": 3},
        {"top_k": 7, "temperature": 4.0},
        {"top_p": 0.5, "temperature": 9.0},
        {"repetition_penalty": 2.0},
        {"top_k": 100, "top_p": 0.6, "temperature": 20.0},
        {"temperature": 0.0},
        {"min_p": 0.2, "temperature": 2.0},
    ]
    params = [SamplingParams(**options[i % 7]) for i in range(21)]  # type: ignore[arg-type]
    keys = [noise_key(i, 0, 0) for i in range(21)]
    seen = [[0, 5, 127, 128, 255 + i, 305] for i in range(21)]
    logits = random(21, 310, scale=1.5).round()
    logits[:, 5] = 6  # likely without the penalty
    logits[:, 300:] = 9
    logits[3, 299] = math.inf
    logits[5, 290] = 12  # in the last slice
    logits[7] = torch.where((torch.arange(310) - 75).abs() < 75, -0.0, 0.0)  # only id 0 and the last are +0
    return logits, SamplingBatch(params, keys, seen, 300), logits[:, :300].isfinite().all(-1)


def sample(library: KernelLibrary) -> tuple[Tensor, Tensor]:
    logits, batch, finite = inputs()
    size = torch.zeros(1, dtype=torch.int64)
    library.run("scratch_bytes", bytes=size, rows=21, ids=300)
    scratch = torch.full([int(size)], 255, dtype=torch.uint8)
    tokens = torch.full([21], -2)
    names = ("keys", "numbers", "top_k", "seen", "seen_end")
    columns = dict(zip(names, batch.tensors(), strict=True))
    places = {"scratch": scratch, "tokens": tokens, "finite": finite}
    library.run("run", logits=logits, **columns, **places, rows=21, vocab=310, ids=300)
    return tokens, torch.where(finite, ReferenceOps().sample(logits, batch), 0)


def finite_rows(library: KernelLibrary) -> tuple[Tensor, Tensor]:
    """Rows of an odd size begin at every alignment."""
    logits = random(52, 4099)
    for row in range(48):  # each place at each alignment
        column = (0, 1, 2, 3, 4, 2000, 4090, 4094, 4095, 4096, 4097, 4098)[row // 4]
        logits[row, column] = (math.nan, math.inf, -math.inf)[row % 3]
    found = torch.full([52], 255, dtype=torch.uint8)
    library.run("run", logits=logits, finite=found, rows=52, size=4099)
    return found, logits.isfinite().all(-1).to(torch.uint8)


RUNS = {"sample": sample, "finite": finite_rows}


def kernel_of(file: str) -> str:
    return next(kernel for kernel, files in FILES.items() if file in files)


def build(kernel: str, folder: Path, file: str = "", old: str = "", new: str = "") -> KernelLibrary:
    """The kernel with `old` in `file` replaced; only float32, so that it compiles quickly."""
    copy_sources(folder, (*FILES[kernel], "dispatch.h", "kernels.h"))
    drop_lines(folder / "dispatch.h", FLOAT32_ONLY)
    make_edits(folder, SMALL if kernel == "sample" else [])
    make_edits(folder, [(file, old, new)] if file else [])
    is_sample = ["-DIS_SAMPLE"] if kernel == "sample" else []
    return compile_here(folder, "sampling.cu", [f'-DKERNEL="{kernel}.cu"', *is_sample])


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KernelLibrary]:
    """The unchanged kernels."""
    return {kernel: build(kernel, tmp_path_factory.mktemp(kernel)) for kernel in FILES}


def test_every_file_has_mutants_and_every_barrier_one_of_its_own() -> None:
    for file in [name for files in FILES.values() for name in files]:
        changes = [(old, new) for name, _, old, new, _ in MUTANTS if name == file]
        dropped = {old for old, new in changes if BARRIER in old and BARRIER not in new}
        (path,) = [path for path in find_sources("cuda", file) if path.name == file]
        assert len(dropped) == path.read_text().count(BARRIER), f"{file}: {dropped}"
        assert len(changes) >= (2 if file == "noise.h" else 3), file


@pytest.mark.parametrize("kernel", FILES)
def test_the_right_kernel_survives(kernel: str, right: dict[str, KernelLibrary]) -> None:
    assert verdict(RUNS[kernel], right[kernel], right[kernel], torch.equal) == "survived"


@pytest.mark.parametrize(
    ("file", "old", "new", "caught_by"),
    [pytest.param(f, old, new, by, id=f"{f}: {what}") for f, what, old, new, by in MUTANTS],
)
def test_each_mutant_is_caught(
    file: str, old: str, new: str, caught_by: str, right: dict[str, KernelLibrary], tmp_path: Path
) -> None:
    kernel = kernel_of(file)
    mutant = build(kernel, tmp_path, file, old, new)
    assert verdict(RUNS[kernel], mutant, right[kernel], torch.equal) == caught_by
