"""Lab 2: rotary positions and grouped-query attention, the two functions that use positions."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from minillm.labs.grader.lab import Case, Lab, Part, Task
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.labs.lab2_attention.attention_cases import (
    HEAD_MISTAKES,
    MASK_MISTAKES,
    SCORE_MISTAKES,
    WINDOW_MISTAKES,
    attention_case,
)
from minillm.labs.lab2_attention.rope_cases import (
    FREQUENCY_CASES,
    FREQUENCY_MISTAKES,
    ROPE_CASES,
    ROPE_MISTAKES,
)
from minillm.ops.reference import attend_pages

FREQUENCIES = Part("minillm.model.rope", "base_frequencies")
ROPE = Part("minillm.ops.reference", "apply_rope")
ATTENTION = Part("minillm.ops.reference", "grouped_query_attention")


def engine_case(window: int | None) -> Case:
    """Logits of a prompt computed in chunks through the paged cache, with the file's parts."""

    def run(parts: Any) -> Tensor:
        llm = tiny_llm(
            window,
            parts={
                "rope": parts.apply_rope,
                "attention": partial(attend_pages, parts.grouped_query_attention),
            },
        )
        return llm.logits([(7 * i) % 90 for i in range(23)])

    return Case("logits of 23 tokens in chunks of 5" + (f", window {window}" if window else ""), run)


LAB = Lab(
    2,
    "attention",
    "RoPE and grouped-query attention",
    (
        Task("2.1", "the angles", 10, FREQUENCIES, FREQUENCY_CASES, FREQUENCY_MISTAKES),
        Task("2.2", "rotate halves", 25, ROPE, ROPE_CASES, ROPE_MISTAKES),
        Task(
            "2.3",
            "scores, scale, causal mask",
            20,
            ATTENTION,
            (attention_case("one head, whole prompt", 5, 5, 1, 1), attention_case("three heads", 4, 4, 3, 3)),
            SCORE_MISTAKES + MASK_MISTAKES[1:],  # top-left and bottom-right are equal if q_len = kv_len
        ),
        Task(
            "2.4",
            "keys from the cache before the new rows",
            10,
            ATTENTION,
            (attention_case("a chunk", 3, 9, 2, 2), attention_case("decode", 1, 6, 2, 2)),
            MASK_MISTAKES + SCORE_MISTAKES,
        ),
        Task(
            "2.5",
            "several query heads for one kv head",
            15,
            ATTENTION,
            (attention_case("groups of 3", 4, 6, 6, 2), attention_case("one kv head", 2, 3, 4, 1)),
            HEAD_MISTAKES + SCORE_MISTAKES + MASK_MISTAKES,
        ),
        Task(
            "2.6",
            "sliding window",
            10,
            ATTENTION,
            (attention_case("prefill", 7, 7, 4, 2, 3), attention_case("decode", 1, 9, 4, 2, 4)),
            WINDOW_MISTAKES + HEAD_MISTAKES + SCORE_MISTAKES + MASK_MISTAKES,
        ),
        Task(
            "2.7",
            "your rope and attention in the running engine",
            10,
            None,
            (engine_case(None), engine_case(6)),
        ),
    ),
)
