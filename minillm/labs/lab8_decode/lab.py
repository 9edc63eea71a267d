"""Lab 8: paged decode attention in CUDA: block tables on the GPU, reductions over a block, one row."""

from __future__ import annotations

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Task
from minillm.labs.lab8_decode import mistakes
from minillm.labs.lab8_decode.kernel_cases import (
    DOTS,
    MAXIMA,
    SLOTS,
    VALUES,
    WHOLE,
    case,
    generate,
    more_dots,
    more_maxima,
    more_slots,
    more_values,
    more_whole,
    section,
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
            section("8.1", "slot_of"),
            SLOTS,
            mistakes.SLOTS,
            more_slots,
        ),
        Task(
            "8.2",
            "a dot product, 16 bytes at a time",
            10,
            section("8.2", "dot"),
            DOTS,
            mistakes.DOT,
            more_dots,
        ),
        Task(
            "8.3",
            "the maximum of a block",
            20,
            section("8.3", "block_max"),
            MAXIMA,
            mistakes.MAX,
            more_maxima,
        ),
        Task(
            "8.4",
            "weights times values, through the pages",
            15,
            section("8.4", "add_values"),
            VALUES,
            mistakes.VALUE,
            more_values,
        ),
        Task(
            "8.5",
            "the kernel: rounds of 128 keys",
            30,
            section("8.5", "decode"),
            WHOLE,
            mistakes.KERNEL,
            more_whole,
        ),
        Task(
            "8.6",
            "an engine that decodes with your kernel gives the same text",
            10,
            None,
            (*WHOLE, case("three texts of 12 tokens", generate)),
            more=more_whole,
        ),
    ),
)
