"""The cases of tasks 14.5 and 14.6: four rows with the bits of one, and the whole product on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.cuda_cost import within
from minillm.labs.grader.cuda_kernels import Kernels
from minillm.labs.grader.lab import Case, Cost, Counted, Words
from minillm.labs.grader.tiny_model import random_tensor
from minillm.labs.lab14_int4.group_cases import CHUNK, GROUP, SIDE, case, chunks_of, run

ROWS = 4
CHUNK_BYTES = 4 * CHUNK


def matrix(seed: int, out: int, columns: int) -> Tensor:
    """Random chunks of a matrix [out, columns], int32 [blocks, groups, 160]; 0 for what is not there.

    The codes past the last column are 0, as pack_group leaves them.
    """
    blocks, groups = -(-out // SIDE), -(-columns // GROUP)
    chunks = chunks_of(seed, blocks * groups).view(blocks, groups, CHUNK)
    left = columns - (groups - 1) * GROUP
    lines = chunks[:, -1, 2 * SIDE :].view(blocks, -1, SIDE)
    lines[:, -(-left // 8) :] = 0
    if left % 8:
        lines[:, left // 8] &= (1 << 4 * (left % 8)) - 1
    chunks[-1].view(groups, -1, SIDE)[:, :, out - (blocks - 1) * SIDE :] = 0
    return chunks


# ---- 14.5 --------------------------------------------------------------------------------------------------


def multiply(chunks: Tensor, x: Tensor, kernels: Kernels) -> Tensor:
    """y [rows, 16] of the student's multiply_rows."""
    y = torch.full((len(x), SIDE), math.nan)
    run(kernels, "run_rows", chunks=chunks, x=x, y=y, rows=len(x), columns=x.shape[1])
    return y


def some_rows(rows: int, columns: int, seed: int, kernels: Kernels) -> Tensor:
    """y [rows, 16]; x ends after the last row, the chunks after the last group."""
    return multiply(matrix(seed, SIDE, columns), random_tensor(seed + 9, rows, columns), kernels)


def bits_of_rows(columns: int, kernels: Kernels) -> list[Any]:
    """Whether each row has the same bits alone, with one other, with two and with three."""
    chunks, x = matrix(31, SIDE, columns), random_tensor(32, ROWS, columns)
    together = multiply(chunks, x, kernels)
    found = []
    for rows in range(1, ROWS):
        for first in range(ROWS - rows + 1):
            part = multiply(chunks, x[first : first + rows].clone(), kernels)
            if not torch.equal(part, together[first : first + rows]):
                found.append(str(rows))
    few = ", ".join(dict.fromkeys(found))
    return [together, Words(f"other bits with {few} rows at once than with 4" if few else "the same bits")]


def reads_of_rows(kernels: Kernels) -> list[Any]:
    """How often the chunks are read for four rows, compared with one."""
    used = []
    for rows in (1, ROWS):
        multiply(matrix(33, SIDE, 2 * GROUP), random_tensor(34, rows, 2 * GROUP), kernels)
        used.append(kernels.counted.tensors["chunks"][0])
    times = used[1] / max(1, used[0])
    # A line may be loaded eight times, once for each k; a scale may be loaded for each row.
    if times <= 2:
        return [Counted("the lines are read once for four rows")]
    return [
        Counted("the lines are read again for each row", f"{times:.1f} times as often for 4 rows as for 1")
    ]


MANY = (
    case("one row, 64 inputs", some_rows, 1, 64, 41),
    case("four rows, 64 inputs", some_rows, 4, 64, 42),
    case("one row, 192 inputs", some_rows, 1, 192, 43),
    case("three rows, 128 inputs", some_rows, 3, 128, 44),
    case("four rows, 72 inputs", some_rows, 4, 72, 45),
    case("two rows, 77 inputs", some_rows, 2, 77, 46),
    case("one row, 5 inputs", some_rows, 1, 5, 47),
    case("150 inputs, rows alone and together", bits_of_rows, 150),
    case("what four rows read", reads_of_rows, side="cost"),
)


def more_rows(random: Random) -> Iterator[Case]:
    """Any sizes."""
    for _ in range(2):
        rows, columns, seed = random.randint(1, ROWS), random.randint(1, 200), random.randrange(10**6)
        yield case(f"{rows} rows of {columns} inputs, seed {seed}", some_rows, rows, columns, seed)


# ---- 14.6 --------------------------------------------------------------------------------------------------


def product(
    launcher: str, chunks: Tensor, x: Tensor, out: int, kernels: Kernels, checked: bool = True
) -> Tensor:
    """y [rows, out] of a launcher with the arguments of run_matmul."""
    y = torch.full((len(x), out), math.nan)
    sizes = {"rows": len(x), "out": out, "columns": x.shape[1]}
    run(kernels, launcher, checked, x=x, chunks=chunks, y=y, **sizes)
    return y


def any_size(launcher: str, rows: int, out: int, columns: int, seed: int, kernels: Kernels) -> Tensor:
    """y [rows, out] for random numbers."""
    return product(launcher, matrix(seed, out, columns), random_tensor(seed + 9, rows, columns), out, kernels)


def alone_and_together(launcher: str, rows: int, kernels: Kernels) -> list[Any]:
    """y of a batch, and whether the first, a middle and the last row have the same bits alone."""
    chunks, x = matrix(51, 18, 150), random_tensor(52, rows, 150)
    y = product(launcher, chunks, x, 18, kernels)
    places = (0, rows // 2, rows - 1)
    alone = [product(launcher, chunks, x[i : i + 1].clone(), 18, kernels) for i in places]
    same = all(torch.equal(one[0], y[i]) for one, i in zip(alone, places, strict=True))
    return [y, Words("alone as in a batch" if same else "a row has other bits alone")]


def reads_of_batch(launcher: str, kernels: Kernels) -> list[Any]:
    """How often the matrix is read for eight rows, compared with one row; it should be twice."""
    used = []
    for rows in (1, 2 * ROWS):
        any_size(launcher, rows, 2 * SIDE, GROUP, 53, kernels)
        used.append(kernels.counted.tensors["chunks"][0])
    times = used[1] / max(1, used[0])
    if times <= 4:
        return [Counted("the matrix is read once for four rows")]
    return [
        Counted("the matrix is read more often", f"{times:.1f} times as often for 8 rows as for 1; 2 needed")
    ]


MATMUL = (
    case("one row, 16 outputs, 64 inputs", any_size, "run_matmul", 1, 16, 64, 61),
    case("4 rows, 32 outputs, 128 inputs", any_size, "run_matmul", 4, 32, 128, 62),
    case("3 rows, 21 outputs, 64 inputs", any_size, "run_matmul", 3, 21, 64, 63),
    case("7 rows, 16 outputs, 64 inputs", any_size, "run_matmul", 7, 16, 64, 64),
    case("2 rows, 33 outputs, 77 inputs", any_size, "run_matmul", 2, 33, 77, 65),
    case("9 rows, 5 outputs, 130 inputs", any_size, "run_matmul", 9, 5, 130, 66),
    case("9 rows, alone and together", alone_and_together, "run_matmul", 9),
    case("what 8 rows read", reads_of_batch, "run_matmul", side="cost"),
)


def more_matmul(random: Random) -> Iterator[Case]:
    """Any sizes."""
    sizes = random.randint(1, 10), random.randint(1, 40), random.randint(1, 150)
    name = "{} rows, {} outputs, {} inputs".format(*sizes)
    yield case(name, any_size, "run_matmul", *sizes, random.randrange(10**6))


def bytes_of_matrix(counted: int, needed: int) -> Cost:
    """The bytes of chunks that were read, beside what is needed."""
    return within("chunks, bytes of global memory", counted, needed)
