"""Lab 8: paged decode attention in CUDA: block tables on the GPU, reductions over a block, one row."""

from __future__ import annotations

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Task
from minillm.labs.lab8_decode.kernel_cases import (
    WHOLE,
    case,
    dots,
    generate,
    maxima,
    section,
    slots,
    values,
    wrong,
)

LAB = CudaLab(
    8,
    "decode",
    "paged decode attention in CUDA",
    (
        Task(
            "8.1",
            "from a position to its slot, on the GPU",
            15,
            section("slot_of"),
            (case("pages of 4", slots, [5, 2, 7], 4), case("pages of 1", slots, [4, 0, 2], 1)),
            (
                wrong(
                    "the block table is not used: a position is not a slot",
                    "table[key / block_size] * block_size + key % block_size",
                    "key",
                ),
                wrong(
                    "the offset in the page is missing: add key % block_size",
                    "table[key / block_size] * block_size + key % block_size",
                    "table[key / block_size] * block_size",
                ),
            ),
        ),
        Task(
            "8.2",
            "a dot product, 16 bytes at a time",
            10,
            section("dot"),
            (case("128 keys", dots),),
            (
                wrong(
                    "correct, but it reads 4 bytes at a time: load_wide<Vec<float, 4>> reads 16",
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
            section("block_max"),
            (case("one round", maxima, 1), case("three rounds, one after the other", maxima, 3)),
            (
                wrong(
                    "the maximum covers only one warp: the block has four",
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
            section("add_values"),
            (case("factor 1", values, 1.0), case("factor 1/4", values, 0.25)),
            (
                wrong("the output is not multiplied by the factor", "  out *= factor;\n", ""),
                wrong("the sum is not multiplied by the factor", "  sum *= factor;\n", ""),
            ),
        ),
        Task(
            "8.5",
            "the kernel: rounds of 128 keys",
            30,
            section("decode"),
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
            "an engine that decodes with your kernel gives the same text",
            10,
            None,
            (*WHOLE, case("three texts of 12 tokens", generate)),
        ),
    ),
)
