"""Lab 7: tiled attention in CUDA: shared memory, online softmax, barriers, and the bytes that are moved."""

from __future__ import annotations

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Task
from minillm.labs.lab7_attention.kernel_cases import (
    V_BARRIER,
    WHOLE,
    case,
    load,
    scores,
    section,
    softmax,
    traffic,
    values,
    wrong,
)

LAB = CudaLab(
    7,
    "attention",
    "tiled attention in CUDA",
    (
        Task(
            "7.1",
            "from global to shared memory, zeros past the end",
            15,
            section("load_tile"),
            (
                case("a full tile", load, 0, 64),
                case("a tile that is partly past the end", load, 32, 40),
            ),
            (
                wrong(
                    "rows past the end must become zero: do not read them, do not leave old values",
                    "first + row < n ? from[(first + row) * kDim + column] : 0.0f",
                    "from[(first + row) * kDim + column]",
                ),
                wrong(
                    "neighbouring threads read addresses in different rows: let the column change fastest",
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
            section("score_keys"),
            (
                case("the diagonal tile", scores, 32, 32),
                case("a tile without hidden keys", scores, 64, 32),
            ),
            (
                wrong(
                    "a row sees its own key too: the mask is <=",
                    "first_key + key <= first_row + row",
                    "first_key + key < first_row + row",
                ),
                wrong("the scores are not scaled", "? sum * scale :", "? sum :"),
                wrong(
                    "rows and keys are compared by their index in the tile: add the tile's first position",
                    "first_key + key <= first_row + row",
                    "key <= row",
                ),
                wrong(
                    "a thread's keys are part, part + 4, ...: neighbouring keys belong to other threads",
                    "int key = part + j * kParts;\n    float sum",
                    "int key = part * kEach + j;\n    float sum",
                ),
            ),
        ),
        Task(
            "7.3",
            "online softmax over the four threads of a row",
            25,
            section("take_scores"),
            (case("one tile", softmax, 1), case("three tiles, the largest score in the second", softmax, 3)),
            (
                wrong(
                    "the sum before this tile is not multiplied by the factor",
                    "s.sum * factor + sum",
                    "s.sum + sum",
                ),
                wrong(
                    "the maximum covers only one thread's scores: the row has four threads",
                    "largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));",
                    "(void)step;",
                ),
                wrong(
                    "the sum covers only one thread's weights: the row has four threads",
                    "sum += __shfl_xor_sync(0xffffffff, sum, step);",
                    "(void)step;",
                ),
                wrong(
                    "the factor is exp(old max - new max), not exp(new max - old max)",
                    "expf(s.max - largest)",
                    "expf(largest - s.max)",
                ),
                wrong(
                    "the maximum covers only this tile: include the old maximum",
                    "float largest = s.max;",
                    "float largest = -INFINITY;",
                ),
            ),
        ),
        Task(
            "7.4",
            "weights times values",
            15,
            section("add_values"),
            (case("factor 1", values, 1.0), case("factor 1/8", values, 0.125)),
            (
                wrong("the output so far is not multiplied by the factor", "out[i] * factor;", "out[i];"),
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
            section("attention"),
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
                    "the last tile is left out: the block's rows see the keys of their own tile",
                    "first_key <= first_row;",
                    "first_key < first_row;",
                ),
                wrong("the result is not divided by the sum of the weights", "sums[i] / s.sum", "sums[i]"),
            ),
        ),
        Task(
            "7.6",
            "your whole file: correct, and K and V read once per tile",
            5,
            None,
            (*WHOLE, case("bytes of global memory", traffic, 2, 101)),
        ),
    ),
)
