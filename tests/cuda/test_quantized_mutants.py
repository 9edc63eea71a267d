# ruff: noqa: E501 - a mutant is a line of the table
"""The kernels of quantised matrices with one wrong line each (mutants), and at offsets beyond 2^31.

As in test_cuda_mutants.py each mutant is caught by the check that the table names: numbers and accesses in
`fast` and `check`, then the bytes and the wavefronts beside those of the right kernel. As in
test_cuda_offsets.py the far end of each tensor must give the bits of the near end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from cases import random
from far import far_end, rows_beyond, same, untouched
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
from quantized_matrices import blocks_of, matrix
from torch import Tensor

from minillm.config.quantization import CODES, Form
from minillm.ops.contract import expert_rows
from minillm.ops.quantized import QuantizedMatrix, rounded_x
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

MULTIPLY = "for (; k < end; k++) {\n        float x = x_tile[local_row][k];\n        partial = fmaf(w_tile[k][local_col], x, partial);"
TURNED = "for (int first = k; k < end; k++) {\n        int j = p.rows > 2 ? first + end - 1 - k : k;\n        float x = x_tile[local_row][j];\n        partial = fmaf(w_tile[j][local_col], x, partial);"
# (kernel, name of the mutant, text, replacement, what catches it). "linear" and "experts" are in linear_q1.cu.
MUTANTS = [
    ("linear", "no barrier before the tiles are written", f"{BARRIER}  // the previous tiles have been read", "", WRONG),
    ("linear", "no barrier before they are read", f"{BARRIER}\n    if (w.runs) {{", "if (w.runs) {", WRONG),
    ("linear", "a row too many", "row < tile.end && k < p.in", "row <= tile.end && k < p.in", "out of bounds"),
    ("linear", "an input too many", "row < tile.end && k < p.in", "row < tile.end && k <= p.in", "out of bounds"),
    ("linear", "order ignored", "k < p.in && w.order ? w.order[k] : k", "k", WRONG),
    ("linear", "order of the sum by the number of rows", MULTIPLY, TURNED, WRONG),
    ("linear", "a group that does not fill its lines has no scale", " && line + 1 < w.lines) continue", ") continue", WRONG),
    ("linear", "a scale for every line", "if (inside + 1 < w.lines_in_group && line + 1 < w.lines) continue;", "", BYTES),
    ("linear", "a line too many", "if (line >= w.lines) continue;", "if (line > w.lines) continue;", "out of bounds"),
    ("linear", "scales of the first group", "w.scale(tile.block, g, output)", "w.scale(tile.block, 0, output)", WRONG),
    ("linear", "minima are not used", "total = fmaf(minima[line][local_col], x_sum * x_scale, total);", "total += 0;", WRONG),
    ("linear", "x is summed over all groups", "partial = x_sum = 0, left", "partial = 0, left", WRONG),
    ("linear", "groups end where tiles end", "if (left > 0 && column + k < p.in) break;", "", WRONG),
    ("linear", "weights transposed", "w_tile[k][local_col], x", "w_tile[k][local_row], x", WRONG),
    ("linear", "no barrier after the rounding", f"round_x(x_tile, x_scales, w);\n      {BARRIER}", "round_x(x_tile, x_scales, w);", WRONG),
    ("linear", "the largest of half of a group", "lanes < w.runs", "2 * lanes < w.runs", WRONG),
    ("linear", "the largest of all rows of a warp", "lanes < w.runs; lanes", "lanes < 32; lanes", WRONG),
    ("linear", "rounded to zero", "rintf(", "truncf(", WRONG),
    ("linear", "the scale of the first group", "x_scales[local_row][(k - 1) / kRun]", "x_scales[local_row][0]", WRONG),
    ("linear", "the sum of codes without their scale", "x_sum * x_scale", "x_sum", WRONG),
    ("linear", "no padding", "kTile + kTile / kLineInputs<kBits>", "kTile", WAVEFRONTS),
    ("linear", "no padding of x", "kXPitch = kDepth + 1", "kXPitch = kDepth", WAVEFRONTS),
    ("linear", "bias of the row", "(tile.bias)[col]", "(tile.bias)[row]", WRONG),
    ("linear", "inputs of a line side by side", "(place & 1) * 16 + (place >> 1) * kBits", "place * kBits", WRONG),
    ("linear", "a minimum instead of the scale", "own + own / 2, output", "own, output", WRONG),
    ("linear", "chunks of one group", "in_pairs = layout.paired;", "in_pairs = 0;", "out of bounds"),
    ("linear", "small floats without a sign", "code & sign ? -size : size", "size", WRONG),
    ("linear", "the sign as a bit of the size", "(code & (sign - 1)) <<", "code <<", WRONG),
    ("experts", "the first expert's matrix", "block_of(above + ", "block_of(", WRONG),
    ("experts", "the first expert's bias", "static_cast<const T*>(a.p.bias) + above", "static_cast<const T*>(a.p.bias)", WRONG),
    ("experts", "rows of the next expert", "{tile.first, tile.end, block", "{tile.first, a.p.rows, block", WRONG),
    ("experts", "blocks without a tile go on", "if (tile.end == 0) return;", "", BYTES),
    ("gather", "a row that does not exist is the first", "exists ? weight_of", "true ? weight_of", "out of bounds"),
    ("gather", "the block's first output", "static_cast<int>(id % 16)", "0", WRONG),
    ("gather", "order ignored", "a.w.order ? a.w.order[k] : k", "k", WRONG),
    ("gather", "positions in the order of the codes", "added[i]", "added[k]", WRONG),
    ("gather", "minima are not used", "w.minimum ? weight +", "false ? weight +", WRONG),
]  # fmt: skip
# (kernel, what is kept in 32 bits, text, replacement)
OFFSETS = [
    ("linear", "rows of x", "static_cast<int64_t>(row) * p.in", "row * p.in"),
    ("linear", "rows of y", "static_cast<int64_t>(row) * p.out", "row * p.out"),
    ("linear", "blocks", "output / 16 * block", "(int)(output / 16 * block)"),
    ("experts", "blocks", "output / 16 * block", "(int)(output / 16 * block)"),
    ("gather", "blocks", "output / 16 * block", "(int)(output / 16 * block)"),
    ("gather", "rows of positions", "p.position_ids[row] * p.size", "(int)(p.position_ids[row] * p.size)"),
    ("gather", "rows of the result", "(p.y) + row * p.size", "(p.y) + (int)(row * p.size)"),
]  # fmt: skip
FILES = {
    "linear": ("linear_q1.cu", "row_tiles.h", "codes.h"),
    "experts": ("linear_q1.cu", "row_tiles.h", "codes.h"),
    "gather": ("gather_codes.cu", "codes.h"),
}
FORMS = [
    Form("uint4", 32, minimum=True),
    Form("int8", 40, wide=True, minimum=True),  # a group may end in the middle of a tile
    Form("int4", 16),
    Form("fp4", 0, wide=True),
    Form("fp8", 64),
    Form("uint4", 32, minimum=True, int8_x=True),
    Form("int8", 64, int8_x=True),
]


def parts(made: QuantizedMatrix) -> dict[str, Any]:
    """A matrix as the harness takes it."""
    form = made.form
    order = made.order if made.order is not None else torch.zeros(1, dtype=torch.int32)
    return {
        "blocks": blocks_of(made),
        "order": order,
        "numbers": {
            "in": made.shape[1],
            "codes": 1 + CODES.index(form.codes),
            "group": min(form.group or made.shape[1], made.shape[1]),
            "wide": int(form.wide),
            "minimum": int(form.minimum),
            "int8_x": int(form.int8_x),
            "ordered": int(made.order is not None),
        },
    }


def multiply(library: KernelLibrary, made: QuantizedMatrix, x: Tensor, bias: Tensor) -> Tensor:
    own, y = parts(made), torch.full((len(x), made.shape[0]), 7.0)
    numbers = own["numbers"]
    library.run(
        "run", x=x, blocks=own["blocks"], order=own["order"], bias=bias, y=y, rows=len(x), **{"in": made.shape[1]},
        out=made.shape[0], **{name: n for name, n in numbers.items() if name != "in"},
    )  # fmt: skip
    return y


def linear(library: KernelLibrary) -> tuple[Tensor, Tensor]:
    """Every form; and a row alone beside the same row in company, to the bit."""
    found, exact = [], []
    for n, form in enumerate(FORMS):
        made, x, bias = matrix(form, 18, 200, ordered=n % 2 == 0, seed=n), random(18, 200, seed=n), random(18)
        y = multiply(library, made, x, bias)
        alone = multiply(library, made, x[3:4].clone(), bias)
        found += [y.nan_to_num(9e9), (alone != y[3:4]).float() * 9e9]
        rows = rounded_x(x, form, made.order) if form.int8_x else x
        exact += [
            oracle.linear(rows, made.dequantize().double(), bias),
            torch.zeros(1, 18, dtype=torch.float64),
        ]
    return torch.cat(found), torch.cat(exact)


def experts(library: KernelLibrary) -> tuple[Tensor, Tensor]:
    """Experts of 21 outputs; rows of no expert stay as they are."""
    counts, pitch, rows = [0, 20, 0, 5, 33], expert_rows(21), 61
    starts = torch.tensor([sum(counts[:e]) for e in range(6)], dtype=torch.int32)
    made, x = matrix(FORMS[0], 5 * pitch, 72), random(rows, 72)
    bias, y, own = random(5 * pitch, seed=2), torch.full((rows, 21), 7.0), parts(made)
    numbers = {name: n for name, n in own["numbers"].items() if name != "in"}
    library.run(
        "run_experts", x=x, blocks=own["blocks"], order=own["order"], bias=bias, y=y, rows=rows, **{"in": 72}, out=21,
        **numbers, starts=starts, num_experts=5, pitch=pitch,
    )  # fmt: skip
    exact, weights = torch.full((rows, 21), 7.0, dtype=torch.float64), made.dequantize().double()
    for e in range(5):
        own_rows, first = slice(int(starts[e]), int(starts[e + 1])), e * pitch
        exact[own_rows] = oracle.linear(x[own_rows], weights[first : first + 21], bias[first : first + 21])
    return y.nan_to_num(9e9), exact


def gather(library: KernelLibrary) -> tuple[Tensor, Tensor]:
    """With positions, a scale, and rows that do not exist."""
    found, exact = [], []
    ids, at = torch.tensor([17, 0, -1, 20, 5, 16]), torch.tensor([1, 0, 0, 1, 0, 1])
    for n, form in enumerate(FORMS):
        made, positions = matrix(form, 20, 200, ordered=n % 2 == 0, seed=n), random(2, 200)
        own, y = parts(made), torch.full((6, 200), 7.0)
        numbers = {name: k for name, k in own["numbers"].items() if name != "in"}
        library.run(
            "run", ids=ids, blocks=own["blocks"], order=own["order"], positions=positions, position_ids=at, y=y,
            rows=6, **{"in": 200}, out=20, **numbers, scale=1.5,
        )  # fmt: skip
        wanted = made.dequantize().double()[ids.clamp(0, 19)] * 1.5 + positions.double()[at]
        wanted[2:4] = 9.0
        found.append(y.nan_to_num(9.0))
        exact.append(wanted)
    return torch.cat(found), torch.cat(exact)


CASES: dict[str, Callable[[KernelLibrary], tuple[Tensor, Tensor]]] = {
    "linear": linear,
    "experts": experts,
    "gather": gather,
}


def build(kernel: str, folder: Path, old: str = "", new: str = "") -> KernelLibrary:
    """The kernel with `old` replaced in the first of its files that has it, for float32 only."""
    copy_sources(folder, (*FILES[kernel], "dispatch.h"))
    changed = next((name for name in FILES[kernel] if old in (folder / name).read_text()), FILES[kernel][0])
    make_edits(folder, [(changed, old, new)] if old else [])
    drop_lines(folder / "dispatch.h", FLOAT32_ONLY)
    flags = [f'-DKERNEL="{FILES[kernel][0]}"', *(["-DIS_LINEAR"] if kernel != "gather" else [])]
    return compile_here(folder, "quantized.cu", flags)


def is_right(found: Tensor, exact: Tensor) -> bool:
    return oracle.error(found, exact) <= 2e-6


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KernelLibrary]:
    """The unchanged kernels."""
    linear_too = build("linear", tmp_path_factory.mktemp("linear"))
    gathering = build("gather", tmp_path_factory.mktemp("gather"))
    return {"linear": linear_too, "experts": linear_too, "gather": gathering}


@pytest.mark.parametrize("kernel", CASES)
def test_the_right_kernel_survives(kernel: str, right: dict[str, KernelLibrary]) -> None:
    assert verdict(CASES[kernel], right[kernel], right[kernel], is_right) == "survived"


@pytest.mark.parametrize(
    ("kernel", "old", "new", "caught_by"),
    [pytest.param(k, old, new, by, id=f"{k}: {what}") for k, what, old, new, by in MUTANTS],
)
def test_each_mutant_is_caught(
    kernel: str, old: str, new: str, caught_by: str, right: dict[str, KernelLibrary], tmp_path: Path
) -> None:
    mutant = build(kernel, tmp_path, old, new)
    assert verdict(CASES[kernel], mutant, right[kernel], is_right) == caught_by


def test_each_barrier_has_a_mutant() -> None:
    (source,) = find_sources("cuda", "linear_q1.cu")
    dropped = [old for kernel, _, old, _, _ in MUTANTS if kernel == "linear" and BARRIER in old]
    assert len(dropped) == source.read_text().count(BARRIER) == 3


# ---- offsets beyond 2^31 ---------------------------------------------------------------------------

INT8 = {"codes": 1, "wide": 0, "minimum": 0, "int8_x": 0, "ordered": 0}
NO_ORDER = torch.zeros(1, dtype=torch.int32)


def one_block(size: int) -> Tensor:
    """The 16 outputs of a matrix in one group: [1, bytes]."""
    return blocks_of(matrix(Form("int8", 0), 16, size))


def far_linear(library: KernelLibrary) -> bool:
    """The last block of many rows of x and y, then of many blocks of the matrix."""
    size, x, block = 2064, random(16, 2064), one_block(2064)

    def run(x: Tensor, blocks: Tensor) -> Tensor:
        rows, out = len(x), 16 * len(blocks)
        y, sizes = untouched(rows, out), {"rows": rows, "in": size, "out": out, "group": size, **INT8}
        library.run("run", x=x, blocks=blocks, order=NO_ORDER, bias=untouched(out), y=y, **_ordered(sizes))
        return y

    near = run(x, block)
    rows = rows_beyond(size) // 16 * 16 + 16
    far_rows = run(far_end(x, rows), far_end(block, 2**31 // rows // 16 + 1))
    far_out = run(x, far_end(block, rows_beyond(block.shape[1])))
    return same([near] * 2, [far_rows[:, -16:], far_out[:, -16:]])


def _ordered(sizes: dict[str, int]) -> dict[str, int]:
    """In the order of the harness's arguments."""
    names = ("rows", "in", "out", "codes", "group", "wide", "minimum", "int8_x", "ordered")
    return {name: sizes[name] for name in names}


def far_experts(library: KernelLibrary) -> bool:
    """The last of many experts, each of a quarter of a megabyte."""
    size, x, block = 16400, random(16, 16400), one_block(16400)

    def run(count: int) -> list[Tensor]:
        starts = torch.zeros(count + 1, dtype=torch.int32)
        starts[-1] = 16
        y, sizes = torch.zeros(16, 16), {"rows": 16, "in": size, "out": 16, "group": size, **INT8}
        given = {
            "x": x,
            "blocks": far_end(block, count),
            "order": NO_ORDER,
            "bias": untouched(16 * count),
            "y": y,
        }
        library.run("run_experts", **given, **_ordered(sizes), starts=starts, num_experts=count, pitch=16)
        return [y]

    return same(run(1), run(rows_beyond(block.shape[1])))


def far_gather(library: KernelLibrary) -> bool:
    """The last rows of the table and of the positions, for the last row of the result."""
    size, block = 2064, one_block(2064)

    def run(rows: int) -> list[Tensor]:
        ids, at = (far_end(torch.tensor([n - 1]), rows) for n in (16 * rows, rows))
        positions, y = far_end(random(1, size, seed=1), rows), untouched(rows, size)
        sizes = {"rows": rows, "in": size, "out": 16 * rows, "group": size, **INT8}
        given = {"ids": ids, "blocks": far_end(block, rows), "order": NO_ORDER, "positions": positions}
        library.run("run", **given, position_ids=at, y=y, **_ordered(sizes), scale=1.5)
        return [y]

    return same(run(1), run(rows_beyond(size)))


FAR_RUNS = {"linear": far_linear, "experts": far_experts, "gather": far_gather}


def far_verdict(kernel: str, library: KernelLibrary) -> str:
    """What is noticed at the far end. Only the last block of a launch runs; of the experts all blocks run."""
    run = partial(FAR_RUNS[kernel], library)
    try:
        if kernel == "experts":
            return "nothing" if run() else WRONG
        with schedule(last_blocks=1):
            return "nothing" if run() else WRONG
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
