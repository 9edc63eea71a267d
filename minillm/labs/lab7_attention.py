"""Lab 7: tiled attention in CUDA. Shared memory, online softmax, barriers, and the bytes to show for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from minillm.bench.traffic import Shape, tiled
from minillm.labs.cuda import Kernels, edited
from minillm.labs.lab import Case, Mistake, Task
from minillm.labs.sections import CudaLab, Section

FILE = "lab7.cu"
TILE = DIM = 32


def random(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that are the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wrong(diagnosis: str, old: str, new: str) -> Mistake:
    """The finished file with `old` replaced."""
    return Mistake(diagnosis, edited(FILE, old, new))


# --- the cases ----------------------------------------------------------------------------------------


def load(first: int, n: int, kernels: Kernels) -> list[Any]:
    """The tile, and whether neighbouring threads read neighbouring addresses."""
    matrix, tile = random(n, DIM), torch.zeros(TILE, DIM)
    kernels.run("run_load", **{"from": matrix, "to": tile, "first": first, "n": n})
    fetched = 32 * kernels.counted.global_read_sectors
    return [tile, "coalesced" if fetched <= kernels.counted.global_read_bytes else "scattered reads"]


def scores(first_row: int, first_key: int, kernels: Kernels) -> Tensor:
    """The 32 x 32 scores of one tile."""
    q, k, found = random(TILE, DIM), random(TILE, DIM, seed=1), torch.zeros(TILE, TILE)
    kernels.run("run_scores", q=q, k=k, to=found, first_row=first_row, first_key=first_key, scale=0.25)
    return found


def softmax(tiles: int, kernels: Kernels) -> list[Tensor]:
    """Weights and state over tiles whose scores rise, fall, and are partly masked."""
    given = random(tiles, TILE, TILE, seed=2) + 3 * torch.tensor([0.0, 2.0, -1.0])[:tiles, None, None]
    given[-1][torch.ones(TILE, TILE).triu(1).bool()] = -torch.inf
    weights, state = torch.zeros(tiles, TILE, TILE), torch.zeros(tiles, 4 * TILE, 3)
    kernels.run("run_softmax", given=given, weights=weights, state=state, tiles=tiles)
    return [weights, state]


def values(factor: float, kernels: Kernels) -> Tensor:
    """The output after one tile."""
    out = random(TILE, DIM, seed=5)
    kernels.run(
        "run_values",
        given=random(TILE, TILE, seed=3),
        values=random(TILE, DIM, seed=4),
        out=out,
        factor=factor,
    )
    return out


def attention(heads: int, n: int, kernels: Kernels) -> Tensor:
    """The whole kernel, under `check`."""
    q, k, v = (random(heads, n, DIM, seed=seed) for seed in (6, 7, 8))
    out = torch.zeros(heads, n, DIM)
    kernels.run("run_attention", q=q, k=k, v=v, out=out, heads=heads, n=n, scale=DIM**-0.5)
    return out


def traffic(heads: int, n: int, kernels: Kernels) -> list[str]:
    """Whether K and V are read once per tile of rows that visits them, and nothing else is moved."""
    attention(heads, n, kernels)
    counted = {tensor: sum(moved) for tensor, moved in kernels.counted.tensors.items()}
    expected = tiled(Shape(n, n, num_heads=heads, num_kv_heads=heads, head_dim=DIM))
    names = {"q": "q", "k": "k_cache", "v": "v_cache", "out": "out"}
    return [
        f"{name}: {'once per tile' if counted.get(name, 0) <= sum(expected[theirs]) else 'more than needed'}"
        for name, theirs in names.items()
    ]


def case(name: str, run: Any, *arguments: Any) -> Case:
    """A case that gives `run` its arguments."""
    return Case(name, partial(run, *arguments))


WHOLE = (
    case("one tile", attention, 1, 32),
    case("less than a tile", attention, 2, 5),
    case("three tiles and a bit", attention, 2, 101),
)

V_BARRIER = "a barrier is missing before or after V takes K's place: the message names the lines that meet"

# --- the lab --------------------------------------------------------------------------------------------

LAB = CudaLab(
    7,
    "attention",
    "tiled attention in CUDA",
    (
        Task(
            "7.1",
            "from global to shared memory, zeros past the end",
            15,
            Section(FILE, "load_tile"),
            (
                case("a full tile", load, 0, 64),
                case("a tile that is partly past the end", load, 32, 40),
            ),
            (
                wrong(
                    "rows past the end must become zero, not stay as they were or be read",
                    "first + row < n ? from[(first + row) * kDim + column] : 0.0f",
                    "from[(first + row) * kDim + column]",
                ),
                wrong(
                    "neighbouring threads read addresses that lie a row apart: let the column change fastest",
                    "int row = i / kDim, column = i % kDim;",
                    "int row = i % kTile, column = i / kTile;",
                ),
                wrong(
                    "the tile begins at row `first` of the matrix",
                    "from[(first + row) * kDim",
                    "from[row * kDim",
                ),
            ),
        ),
        Task(
            "7.2",
            "dot products and the causal mask",
            20,
            Section(FILE, "score_keys"),
            (
                case("the diagonal tile", scores, 32, 32),
                case("a tile that is seen whole", scores, 64, 32),
            ),
            (
                wrong(
                    "a row sees its own key too: the mask is <=",
                    "first_key + key <= first_row + row",
                    "first_key + key < first_row + row",
                ),
                wrong("the scores are not scaled", "? sum * scale :", "? sum :"),
                wrong(
                    "rows and keys are compared within their tiles: add where the tiles begin",
                    "first_key + key <= first_row + row",
                    "key <= row",
                ),
                wrong(
                    "a thread's keys are part, part + 4, ...: neighbours in the tile belong to other threads",
                    "int key = part + j * kParts;\n    float sum",
                    "int key = part * kEach + j;\n    float sum",
                ),
            ),
        ),
        Task(
            "7.3",
            "online softmax over the four threads of a row",
            25,
            Section(FILE, "take_scores"),
            (case("one tile", softmax, 1), case("three tiles, the largest score in the second", softmax, 3)),
            (
                wrong(
                    "the sum before this tile is not shrunk by the factor",
                    "s.sum * factor + sum",
                    "s.sum + sum",
                ),
                wrong(
                    "the maximum is that of one thread's scores: the row has four threads",
                    "largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));",
                    "(void)step;",
                ),
                wrong(
                    "the sum is that of one thread's weights: the row has four threads",
                    "sum += __shfl_xor_sync(0xffffffff, sum, step);",
                    "(void)step;",
                ),
                wrong(
                    "the factor is exp(old max - new max), not the other way round",
                    "expf(s.max - largest)",
                    "expf(largest - s.max)",
                ),
                wrong(
                    "the maximum is this tile's alone: it must not fall below the one before",
                    "float largest = s.max;",
                    "float largest = -INFINITY;",
                ),
            ),
        ),
        Task(
            "7.4",
            "weights times values",
            15,
            Section(FILE, "add_values"),
            (case("factor 1", values, 1.0), case("factor 1/8", values, 0.125)),
            (
                wrong("what was summed before is not shrunk by the factor", "out[i] * factor;", "out[i];"),
                wrong(
                    "the weights are read with row and key exchanged",
                    "weights[row][key] *",
                    "weights[key][row] *",
                ),
            ),
        ),
        Task(
            "7.5",
            "the kernel: tiles, loads and barriers",
            20,
            Section(FILE, "attention"),
            WHOLE,
            (
                wrong(
                    "a barrier is missing between loading K and using it",
                    "__syncthreads();\n    score_keys",
                    "score_keys",
                ),
                wrong(
                    V_BARRIER,
                    "__syncthreads();\n    load_tile(kv_tile, v",
                    "load_tile(kv_tile, v",
                ),
                wrong(
                    V_BARRIER,
                    "__syncthreads();\n    add_values",
                    "add_values",
                ),
                wrong(
                    "the last tile is not visited: the block's rows see their own tile's keys",
                    "first_key <= first_row;",
                    "first_key < first_row;",
                ),
                wrong("the result is not divided by the sum of the weights", "sums[i] / s.sum", "sums[i]"),
            ),
        ),
        Task(
            "7.6",
            "your file as it is: right, and K and V read once per tile",
            5,
            None,
            (*WHOLE, case("bytes of global memory", traffic, 2, 101)),
        ),
    ),
)
