"""Lab 10: tensor cores: fragments, one chain of mma, ldmatrix, a layout without bank conflicts, cp.async."""

from __future__ import annotations

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Task
from minillm.labs.lab10_tensor_cores import kernel_mistakes, mistakes
from minillm.labs.lab10_tensor_cores.fragment_cases import (
    BY_HAND,
    BY_LDMATRIX,
    LAYOUT,
    TILE,
    more_by_hand,
    more_by_ldmatrix,
    more_layout,
    more_tile,
    section,
)
from minillm.labs.lab10_tensor_cores.kernel_cases import COPIES, ENGINE, WHOLE, more_copies, more_whole

LAB = CudaLab(
    10,
    "tensor_cores",
    "a matrix product on tensor cores",
    (
        Task(
            "10.1",
            "which lane holds which number of an mma",
            15,
            section("10.1", "load_by_hand"),
            BY_HAND,
            mistakes.BY_HAND_MISTAKES,
            more_by_hand,
        ),
        Task(
            "10.2",
            "16 x 8 outputs, mma after mma in one order",
            15,
            section("10.2", "multiply_tile"),
            TILE,
            mistakes.TILE_MISTAKES,
            more_tile,
        ),
        Task(
            "10.3",
            "the same fragments with ldmatrix",
            15,
            section("10.3", "load_fragments"),
            BY_LDMATRIX,
            mistakes.LDMATRIX_MISTAKES,
            more_by_ldmatrix,
        ),
        Task(
            "10.4",
            "a layout without bank conflicts",
            10,
            section("10.4", "place"),
            LAYOUT,
            mistakes.LAYOUT_MISTAKES,
            more_layout,
        ),
        Task(
            "10.5",
            "cp.async, zeros past the end",
            15,
            section("10.5", "copy_rows"),
            COPIES,
            kernel_mistakes.COPY,
            more_copies,
        ),
        Task(
            "10.6",
            "the kernel, with two stages in turns",
            20,
            section("10.6", "linear"),
            WHOLE,
            kernel_mistakes.KERNEL,
            more_whole,
        ),
        Task(
            "10.7",
            "an engine that multiplies with your whole file",
            10,
            None,
            ENGINE,
            more=more_whole,
        ),
    ),
)
