"""The cases of tasks 10.1 to 10.4: which lane holds which number, one chain of mma, ldmatrix, the layout.

A case about places runs twice: first each number of W and x tells its row, then its column. So the answer is
a table of places, thread by thread: "row 37, column 2" of it is number 2 of thread 37, lane 5 of the second
warp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.cuda_cost import barriers, bytes_moved, within
from minillm.labs.grader.cuda_kernels import Kernels
from minillm.labs.grader.cuda_lab import Section
from minillm.labs.grader.lab import Case, Cost, Side
from minillm.labs.grader.tiny_model import random_tensor

SOURCE = Path(__file__).with_name("lab10.cu")
OUT, TOKENS, DEPTH, WIDE, LANES, WARPS = 32, 8, 64, 8, 32, 2
CHUNKS = DEPTH // WIDE
OF_X = 100  # added to the places of x, so that numbers of W and of x differ


def section(number: str, name: str) -> Section:
    """The section of task `number`, the body of function `name`."""
    return Section(str(SOURCE), name, task=number)


def case(name: str, run: Callable[..., Any], *arguments: Any, side: Side = "answer") -> Case:
    """A case that calls `run` with these arguments."""
    return Case(name, partial(run, *arguments), side)


def numbers(seed: int, rows: int, columns: int) -> Tensor:
    """A bfloat16 matrix; large numbers, so that the rounding errors of a sum are large too."""
    return 64 * random_tensor(seed, rows, columns).bfloat16()


def places(rows: int, columns: int, axis: int) -> Tensor:
    """A bfloat16 matrix whose numbers tell their row (axis 0) or their column (axis 1)."""
    found = torch.arange(rows if axis == 0 else columns)
    return found.unsqueeze(1 - axis).expand(rows, columns).bfloat16()


Run = Callable[[Tensor, Tensor, Tensor, Tensor], None]  # of w, x, a, b


def fragments(run: Run, w_shape: tuple[int, int], x_shape: tuple[int, int]) -> list[Tensor]:
    """Rows and columns of each thread's numbers: a and b by row, a and b by column; -1: not loaded."""
    found = []
    for axis in range(2):
        a, b = torch.zeros(WARPS * LANES, 8), torch.zeros(WARPS * LANES, 4)
        run(places(*w_shape, axis).contiguous(), OF_X + places(*x_shape, axis), a, b)
        found += [a, b]
    return found


# ---- 10.1 --------------------------------------------------------------------------------------------------


def by_hand(stride: int, column: int, kernels: Kernels) -> list[Any]:
    """The fragments of 16 columns from `column` on, and the accesses of two warps to shared memory."""

    def run(w: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
        kernels.run("run_by_hand", w=w, x=x, a=a, b=b, stride=stride, column=column)

    found = fragments(run, (16, stride), (16, stride))
    return [*found, loads(kernels, 2 * 16 * stride // LANES, 6 * WARPS), barriers(kernels.counted, 1)]


def loads(kernels: Kernels, given: int, needed: int, times: float = 1.0) -> Cost:
    """The accesses to shared memory, without the `given` ones that filled it."""
    return within("accesses to shared memory", kernels.counted.shared_accesses - given, needed, times)


BY_HAND = (
    case("rows of 16 numbers", by_hand, 16, 0),
    case("rows of 24 numbers, columns 8 to 23", by_hand, 24, 8),
    case("rows of 48 numbers, columns 16 to 31", by_hand, 48, 16, side="cost"),
)


def more_by_hand(random: Random) -> Iterator[Case]:
    """Any stride."""
    for _ in range(2):
        stride = random.choice((20, 24, 32, 40, 44))
        column = random.randrange(0, stride - 15, 2)
        yield case(f"rows of {stride} numbers, from column {column}", by_hand, stride, column)


# ---- 10.2 --------------------------------------------------------------------------------------------------


def tile(columns: int, padding: int, seed: int, kernels: Kernels, cancels: bool = False) -> list[Any]:
    """y [8, 16] over `columns` columns, and what was done for it. Behind the columns lie other numbers.

    With `cancels` the second half of W is the first one with its sign changed, and that of x the same. Then
    the sums are 0, and what is left is rounding error: it has other bits for each order of the sum.
    """
    w, x = numbers(seed, 16, columns + padding), numbers(seed + 1, TOKENS, columns + padding)
    if cancels:
        half = columns // 2
        w[:, half:columns], x[:, half:columns] = -w[:, :half], x[:, :half]
    y = torch.full((TOKENS, 16), math.nan)
    kernels.run("run_tile", w=w, x=x, y=y, stride=columns + padding, columns=columns)
    return [
        y,
        within("mma", kernels.counted.mma, columns // 16),
        *bytes_moved(kernels.counted, {"y": y.nbytes}),
        barriers(kernels.counted, 1),
    ]


TILE = (
    case("16 columns, one mma", tile, 16, 8, 1),
    case("64 columns", tile, 64, 8, 3),
    case("128 columns whose products cancel", partial(tile, cancels=True), 128, 8, 5),
    case("what 96 columns cost", tile, 96, 0, 7, side="cost"),
)


def more_tile(random: Random) -> Iterator[Case]:
    """Any number of columns; half of the cases cancel."""
    for cancels in (False, True):
        columns, seed = 32 * random.randint(1, 4), random.randrange(10**6)
        yield case(f"{columns} columns, seed {seed}", partial(tile, cancels=cancels), columns, 8, seed)


# ---- 10.3 --------------------------------------------------------------------------------------------------


def by_ldmatrix(step: int, kernels: Kernels) -> list[Any]:
    """The fragments of one step of a stage, and the accesses of two warps to shared memory."""

    def run(w: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
        kernels.run("run_fragments", w=w, x=x, a=a, b=b, step=step)

    found = fragments(run, (OUT, DEPTH), (TOKENS, DEPTH))
    filling = (OUT + TOKENS) * CHUNKS // LANES
    return [*found, loads(kernels, filling, 2 * WARPS, 1.5), barriers(kernels.counted, 1)]


BY_LDMATRIX = (
    case("two warps, step 0", by_ldmatrix, 0),
    case("two warps, step 3", by_ldmatrix, 3),
    case("two warps, step 1", by_ldmatrix, 1, side="cost"),
)


def more_by_ldmatrix(_: Random) -> Iterable[Case]:
    """The step that is left."""
    return [case("two warps, step 2", by_ldmatrix, 2)]


# ---- 10.4 --------------------------------------------------------------------------------------------------


def layout(kernels: Kernels) -> list[Any]:
    """Stages of 8 and of 32 rows, written and read back, and the wavefronts of eight lanes."""
    stage = torch.arange(OUT * DEPTH, dtype=torch.int16).view(OUT, DEPTH)
    few, rows = (torch.zeros(count, DEPTH, dtype=torch.int16) for count in (TOKENS, OUT))
    matrices = torch.zeros(CHUNKS, LANES, 8, dtype=torch.int16)
    tensors: dict[str, Any] = {"from": stage, "few": few, "rows": rows, "matrices": matrices}
    kernels.run("run_place", **tensors)
    stores = kernels.counted["check_rows"].shared_wavefronts // 2  # each access is made twice
    reads = kernels.counted["check_matrices"].shared_wavefronts - stores
    return [
        *(few, rows, matrices),
        each("an ldmatrix of eight rows", reads),
        each("storing the eight chunks of a row", stores),
    ]


def each(what: str, wavefronts: int) -> Cost:
    """The wavefronts of eight lanes; the stage of 32 rows has 32 times eight chunks."""
    mean = wavefronts / OUT
    return Cost(f"{what}: {mean:.2f} wavefronts, needed 1.00" if mean > 1 else f"{what}: as needed")


def more_layout(_: Random) -> Iterable[Case]:
    """The one case covers every row and chunk."""
    return LAYOUT


LAYOUT = (case("every chunk has its own place, and no access waits", layout, side="cost"),)
