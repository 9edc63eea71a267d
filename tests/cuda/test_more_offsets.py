# ruff: noqa: E501 - a mutant is a line of the table
"""Offsets beyond 2^31 of the kernels whose mutants have files of their own: `sample`, `finite_rows`, `linear_experts`.

As in test_cuda_offsets.py: only the last block of each launch runs, in memory that takes none until it is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import test_expert_mutants as experts
import test_sample_mutants as sampling
import torch
from cases import random
from far import far_end, rows_beyond, same, untouched
from mutants import FLOAT32_ONLY, compile_here, copy_sources, drop_lines, make_edits
from torch import Tensor

from minillm.ops.simt import KernelLibrary, SimtError, schedule

FILES = {
    "sample": ("sample.cu", "slice.h", "sort.h", "search.h", "noise.h"),
    "finite": ("finite.cu",),
    "linear_experts": ("linear_l2.cu", "row_tiles.h"),
}
# (kernel, file, what is kept in 32 bits, part of a line, what stands there instead)
MUTANTS = [
    ("sample", "slice.h", "rows of logits", "row.index * w.p.vocab_size", "(int)(row.index * w.p.vocab_size)"),
    ("finite", "finite.cu", "rows of logits", "static_cast<int64_t>(blockIdx.x) * p.size", "static_cast<int>(blockIdx.x * p.size)"),
    ("linear_experts", "row_tiles.h", "matrices", "above * own.in", "(int)(above * own.in)"),
]  # fmt: skip


def sample(library: KernelLibrary) -> bool:
    """One slice a row. The scratch memory has a round of rows, and there are many rounds."""

    def run(rows: int) -> list[Tensor]:
        size = torch.zeros(1, dtype=torch.int64)
        library.run("scratch_bytes", bytes=size, rows=rows, ids=4000)
        numbers = far_end(torch.tensor([[1.0, 0.9, 0.0, 1.0]], dtype=torch.float64), rows)
        none, finite = untouched(rows, dtype=torch.int64), far_end(torch.tensor([True]), rows)
        tokens, scratch = untouched(rows, dtype=torch.int64), untouched(int(size), dtype=torch.uint8)
        library.run(
            "run", logits=far_end(random(1, 4000), rows), keys=far_end(torch.tensor([77]), rows), numbers=numbers,
            top_k=far_end(torch.tensor([40]), rows), seen=none, seen_end=none, scratch=scratch, tokens=tokens,
            finite=finite, rows=rows, vocab=4000, ids=4000,
        )  # fmt: skip
        return [tokens]

    return same(run(1), run(rows_beyond(4000)))


def finite(library: KernelLibrary) -> bool:
    def run(rows: int) -> list[Tensor]:
        found = untouched(rows, dtype=torch.uint8)
        library.run("run", logits=far_end(random(1, 4000), rows), finite=found, rows=rows, size=4000)
        return [found]

    return same(run(1), run(rows_beyond(4000)))


def linear_experts(library: KernelLibrary) -> bool:
    """The last of many experts, each with 16 rows of 16,384 numbers."""
    x, weight, bias = random(16, 16384), random(16, 16384, seed=1), random(16, seed=2)

    def run(count: int) -> list[Tensor]:
        starts = torch.zeros(count + 1, dtype=torch.int32)
        starts[-1] = 16
        y = torch.zeros(16, 16)
        given = {"x": x, "weight": far_end(weight, 16 * count), "bias": far_end(bias, 16 * count)}
        sizes = {"rows": 16, "in": 16384, "out": 16, "num_experts": count, "pitch": 16}
        library.run("run", **given, y=y, starts=starts, **sizes)
        return [y]

    return same(run(1), run(rows_beyond(16 * 16384)))


RUNS: dict[str, Callable[[KernelLibrary], bool]] = {
    "sample": sample,
    "finite": finite,
    "linear_experts": linear_experts,
}


def build(kernel: str, folder: Path, file: str = "", old: str = "", new: str = "") -> KernelLibrary:
    """The kernel with `old` in `file` replaced; only float32, so that it compiles quickly."""
    copy_sources(folder, (*FILES[kernel], "dispatch.h"))
    drop_lines(folder / "dispatch.h", FLOAT32_ONLY)
    make_edits(folder, [(file, old, new)] if file else [])
    harness, flag = {
        "sample": ("sampling.cu", ["-DIS_SAMPLE"]),
        "finite": ("sampling.cu", []),
        "linear_experts": ("experts.cu", ["-DIS_LINEAR_EXPERTS"]),
    }[kernel]
    return compile_here(folder, harness, [f'-DKERNEL="{FILES[kernel][0]}"', *flag])


def run(kernel: str, library: KernelLibrary) -> bool:
    if kernel == "linear_experts":  # it has few blocks, and the last ones have no rows
        return RUNS[kernel](library)
    with schedule(last_blocks=1):
        return RUNS[kernel](library)


def seen(kernel: str, library: KernelLibrary) -> str:
    """What is noticed of a mutant."""
    try:
        return "nothing" if run(kernel, library) else "wrong numbers"
    except SimtError as error:
        return error.kind


def test_every_kernel_is_here() -> None:
    assert set(RUNS) == {*sampling.FILES, "linear_experts"} == {kernel for kernel, *_ in MUTANTS}
    assert "linear_experts" in experts.RUNS


@pytest.mark.parametrize("kernel", RUNS)
def test_offsets_beyond_two_to_the_31(kernel: str, tmp_path: Path) -> None:
    assert run(kernel, build(kernel, tmp_path))


@pytest.mark.parametrize(
    ("kernel", "file", "old", "new"),
    [pytest.param(k, f, o, n, id=f"{k}: {w}") for k, f, w, o, n in MUTANTS],
)
def test_an_offset_in_32_bits_is_noticed(kernel: str, file: str, old: str, new: str, tmp_path: Path) -> None:
    assert seen(kernel, build(kernel, tmp_path, file, old, new)) in ("wrong numbers", "out of bounds")
