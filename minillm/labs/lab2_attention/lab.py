"""Lab 2: rotary positions and grouped-query attention, the two functions that use positions."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from minillm.labs.grader.lab import Case, Lab, Part, Task, Words
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.labs.lab2_attention.attention_cases import (
    CACHE_CASES,
    GROUP_CASES,
    SCORE_CASES,
    WINDOW_CASES,
    more_attention,
)
from minillm.labs.lab2_attention.attention_mistakes import (
    BY_ROW,
    FIRST_HEAD,
    FULL_MASK,
    GROUP_MISTAKES,
    HEAD_MISTAKES,
    MASK_MISTAKES,
    PROMPT_MISTAKES,
    SCORE_MISTAKES,
    TOP_LEFT,
    WINDOW_MISTAKES,
)
from minillm.labs.lab2_attention.costs import cost
from minillm.labs.lab2_attention.rope_cases import (
    FREQUENCY_CASES,
    FREQUENCY_MISTAKES,
    ROPE_CASES,
    ROPE_MISTAKES,
    more_frequencies,
    more_ropes,
)
from minillm.ops.reference import attend_pages

FREQUENCIES = Part("minillm.model.rope", "base_frequencies", engine_calls=True)
ROPE = Part("minillm.ops.reference", "apply_rope")
ATTENTION = Part(
    "minillm.ops.reference", "grouped_query_attention", twins=(("minillm.ops.variants", "attention"),)
)


# In a prompt without a cache, top-left and bottom-right are one alignment.
PROMPT_MASK_MISTAKES = tuple(mistake for mistake in MASK_MISTAKES if mistake is not TOP_LEFT)


def logits(window: int | None, parts: Any) -> list[Tensor]:
    """Logits of two prompts, computed in chunks through the paged cache, with the file's parts."""
    seams = {"rope": parts.apply_rope, "attention": partial(attend_pages, parts.grouped_query_attention)}
    llm = tiny_llm(window, parts=seams)
    return [llm.logits([(factor * i) % 90 for i in range(count)]) for factor, count in ((7, 23), (5, 14))]


def engine_case(window: int | None) -> Case:
    """The file's parts in an engine, perhaps with a sliding window."""
    name = "logits of 23 tokens in chunks of 5" + (f", window {window}" if window else "")
    return Case(name, partial(logits, window))


def engine_work(parts: Any) -> list[Words]:
    """What the two prompts cost, the model included; with the engine's own parts about 1,000 operations."""
    return cost(lambda: logits(None, parts), 3000, 1 << 20, "the engine's own parts")


LAB = Lab(
    2,
    "attention",
    "RoPE and grouped-query attention",
    (
        Task("2.1", "the angles", 10, FREQUENCIES, FREQUENCY_CASES, FREQUENCY_MISTAKES, more_frequencies),
        Task("2.2", "rotate halves", 25, ROPE, ROPE_CASES, ROPE_MISTAKES, more_ropes),
        Task(
            "2.3",
            "scores, scale, causal mask",
            20,
            ATTENTION,
            SCORE_CASES,
            (*SCORE_MISTAKES, *PROMPT_MASK_MISTAKES, *PROMPT_MISTAKES, FIRST_HEAD),
            more_attention(has_cache=False, is_grouped=False, has_window=False),
        ),
        Task(
            "2.4",
            "keys from the cache before the new rows",
            10,
            ATTENTION,
            CACHE_CASES,
            (*MASK_MISTAKES, *SCORE_MISTAKES, BY_ROW, FULL_MASK, FIRST_HEAD),
            more_attention(has_cache=True, is_grouped=False, has_window=False),
        ),
        Task(
            "2.5",
            "several query heads for one kv head",
            15,
            ATTENTION,
            GROUP_CASES,
            (*GROUP_MISTAKES, *SCORE_MISTAKES, *MASK_MISTAKES),
            more_attention(has_cache=True, is_grouped=True, has_window=False),
        ),
        Task(
            "2.6",
            "sliding window",
            10,
            ATTENTION,
            WINDOW_CASES,
            (*WINDOW_MISTAKES, *HEAD_MISTAKES, *SCORE_MISTAKES, *MASK_MISTAKES, FULL_MASK),
            more_attention(has_cache=True, is_grouped=True, has_window=True),
        ),
        Task(
            "2.7",
            "your rope and attention in the running engine",
            10,
            None,
            (engine_case(None), engine_case(6), Case("the work for both prompts", engine_work, "cost")),
        ),
    ),
)
