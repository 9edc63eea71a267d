"""Lab 14: weights of 4 bits: pack, unpack, scale once a group, several rows; on a CPU and in CUDA."""

from __future__ import annotations

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Task
from minillm.labs.lab14_int4 import group_mistakes, kernel_mistakes, matmul_mistakes
from minillm.labs.lab14_int4.group_cases import (
    ADD,
    DOT,
    PACK,
    UNPACK,
    more_add,
    more_dot,
    more_pack,
    more_unpack,
    section,
)
from minillm.labs.lab14_int4.kernel_cases import ENGINE, KERNEL, WARP, more_kernel, more_warp, more_whole
from minillm.labs.lab14_int4.matmul_cases import MANY, MATMUL, more_matmul, more_rows

LAB = CudaLab(
    14,
    "int4",
    "a product with weights of 4 bits, on a CPU and in CUDA",
    (
        Task(
            "14.1",
            "round a group, eight codes in a word",
            15,
            section("14.1", "pack_group"),
            PACK,
            group_mistakes.PACK,
            more_pack,
        ),
        Task(
            "14.2",
            "a line back to numbers, by mask and shift",
            5,
            section("14.2", "unpack_line"),
            UNPACK,
            group_mistakes.UNPACK,
            more_unpack,
        ),
        Task(
            "14.3",
            "16 dot products of codes side by side",
            10,
            section("14.3", "dot_group"),
            DOT,
            group_mistakes.DOT,
            more_dot,
        ),
        Task(
            "14.4",
            "scale and minimum, once for each group",
            10,
            section("14.4", "add_group"),
            ADD,
            group_mistakes.ADD,
            more_add,
        ),
        Task(
            "14.5",
            "four rows for one read of the weights, with the bits of one row",
            15,
            section("14.5", "multiply_rows"),
            MANY,
            matmul_mistakes.ROWS,
            more_rows,
        ),
        Task(
            "14.6",
            "any number of rows and outputs",
            10,
            section("14.6", "matmul"),
            MATMUL,
            matmul_mistakes.MATMUL,
            more_matmul,
        ),
        Task(
            "14.7",
            "CUDA: a warp and a chunk, in 20 sectors",
            10,
            section("14.7", "multiply_chunk"),
            WARP,
            kernel_mistakes.WARP,
            more_warp,
        ),
        Task(
            "14.8",
            "CUDA: the kernel, the matrix read once for four rows",
            15,
            section("14.8", "linear"),
            KERNEL,
            kernel_mistakes.KERNEL,
            more_kernel,
        ),
        Task(
            "14.9",
            "an engine in 4 bits with your whole file",
            10,
            None,
            ENGINE,
            more=more_whole,
        ),
    ),
)
