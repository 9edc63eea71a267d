"""Lab 7: tiled attention in CUDA: shared memory, online softmax, barriers, and the bytes that are moved."""

from __future__ import annotations

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Task
from minillm.labs.lab7_attention import mistakes
from minillm.labs.lab7_attention.kernel_cases import (
    LAYOUT,
    LOADS,
    SCORES,
    SOFTMAX,
    VALUES,
    WHOLE,
    more_layout,
    more_loads,
    more_scores,
    more_softmax,
    more_values,
    more_whole,
    section,
)

LAB = CudaLab(
    7,
    "attention",
    "tiled attention in CUDA",
    (
        Task(
            "7.1",
            "from global to shared memory, zeros past the end",
            10,
            section("7.1", "load_tile"),
            LOADS,
            mistakes.LOAD,
            more_loads,
        ),
        Task(
            "7.2",
            "dot products and the causal mask",
            15,
            section("7.2", "score_keys"),
            SCORES,
            mistakes.SCORE,
            more_scores,
        ),
        Task(
            "7.3",
            "online softmax over the four threads of a row",
            25,
            section("7.3", "take_scores"),
            SOFTMAX,
            mistakes.SOFTMAX_MISTAKES,
            more_softmax,
        ),
        Task(
            "7.4",
            "weights times values",
            10,
            section("7.4", "add_values"),
            VALUES,
            mistakes.VALUE,
            more_values,
        ),
        Task(
            "7.5",
            "the kernel: tiles, loads and barriers",
            20,
            section("7.5", "attention"),
            WHOLE,
            mistakes.KERNEL,
            more_whole,
        ),
        Task(
            "7.6",
            "the layout of a tile, without bank conflicts",
            10,
            section("7.6", "word"),
            LAYOUT,
            mistakes.LAYOUT_MISTAKES,
            more_layout,
        ),
        Task(
            "7.7",
            "your whole file: correct, and nothing is moved or waited for in vain",
            10,
            None,
            WHOLE,
            more=more_whole,
        ),
    ),
)
