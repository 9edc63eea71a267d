"""Lab 1: sampling and streaming text: from logits to tokens, and from tokens to text."""

from __future__ import annotations

from typing import Any

from minillm.config import SamplingParams
from minillm.labs.grader.lab import Case, Lab, Part, Task
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.labs.lab1_sampling.detokenizer_cases import STREAM_CASES, STREAM_MISTAKES
from minillm.labs.lab1_sampling.draw_cases import DRAW_CASES, DRAW_MISTAKES
from minillm.labs.lab1_sampling.filter_cases import FILTER_CASES, FILTER_MISTAKES
from minillm.labs.lab1_sampling.penalty_cases import PENALTY_CASES, PENALTY_MISTAKES
from minillm.labs.lab1_sampling.stop_cases import STOP_CASES, STOP_MISTAKES
from minillm.labs.lab1_sampling.top_cases import TOP_CASES, TOP_MISTAKES


def in_engine(parts: Any) -> list[Any]:
    """Tokens, text and finish reason of completions with the file's sampler and detokenizer."""
    llm = tiny_llm(parts={"sampler": parts.sample, "detokenizer": parts.Detokenizer})
    params = [
        SamplingParams(max_tokens=24, temperature=0.0),
        SamplingParams(max_tokens=24, seed=1, n=2, top_p=0.9),
        SamplingParams(max_tokens=24, seed=2, temperature=1.5, top_k=20, repetition_penalty=1.3),
        SamplingParams(max_tokens=40, seed=3, temperature=2.0, min_p=0.01, stop=("e", "an", "0x")),
    ]
    outputs = llm.generate(["Once upon a time"] * len(params), params)
    return [[[c.token_ids, c.text, c.finish_reason] for c in output.outputs] for output in outputs]


LAB = Lab(
    1,
    "sampling",
    "Sampling and streaming text",
    (
        Task(
            "1.1",
            "repetition penalty",
            10,
            Part("minillm.ops.sampling", "penalise_repetition"),
            PENALTY_CASES,
            PENALTY_MISTAKES,
        ),
        Task(
            "1.2", "top-k, then top-p", 20, Part("minillm.ops.sampling", "keep_top"), TOP_CASES, TOP_MISTAKES
        ),
        Task(
            "1.3",
            "temperature and the filters, in order",
            15,
            Part("minillm.ops.sampling", "filter_logits"),
            FILTER_CASES,
            FILTER_MISTAKES,
        ),
        Task(
            "1.4",
            "the draw, as a function of the key",
            20,
            Part("minillm.ops.sampling", "sample", helpers=("scores", "masked")),
            DRAW_CASES,
            DRAW_MISTAKES,
        ),
        Task(
            "1.5",
            "stop strings that span pieces",
            15,
            Part("minillm.text.detokenizer", "StopMatcher", ("push",), ("_overlap",)),
            STOP_CASES,
            STOP_MISTAKES,
        ),
        Task(
            "1.6",
            "never half a character, never a lost tail",
            10,
            Part("minillm.text.detokenizer", "Detokenizer", ("push", "finish"), ("_tail",)),
            STREAM_CASES,
            STREAM_MISTAKES,
        ),
        Task(
            "1.7",
            "your sampler and detokenizer in the running engine",
            10,
            None,
            (Case("four requests at once", in_engine),),
        ),
    ),
)
