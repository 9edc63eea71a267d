"""Lab 1: sampling and streaming text: from logits to tokens, and from tokens to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minillm.config import SamplingParams
from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Case, Lab, Part, Task, Words
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.labs.lab1_sampling.costs import few_ops
from minillm.labs.lab1_sampling.detokenizer_cases import STREAM_CASES, more_streams
from minillm.labs.lab1_sampling.detokenizer_mistakes import STREAM_MISTAKES
from minillm.labs.lab1_sampling.draw_cases import DRAW_CASES, more_draws
from minillm.labs.lab1_sampling.draw_mistakes import DRAW_MISTAKES
from minillm.labs.lab1_sampling.filter_cases import FILTER_CASES, FILTER_MISTAKES, more_filters
from minillm.labs.lab1_sampling.penalty_cases import PENALTY_CASES, PENALTY_MISTAKES, more_penalties
from minillm.labs.lab1_sampling.stop_cases import STOP_CASES, more_stops
from minillm.labs.lab1_sampling.stop_mistakes import STOP_MISTAKES
from minillm.labs.lab1_sampling.top_cases import TOP_CASES, TOP_MISTAKES, more_tops

PARAMS = (
    SamplingParams(max_tokens=24, temperature=0.0),
    SamplingParams(max_tokens=24, seed=1, n=2, top_p=0.9),
    SamplingParams(max_tokens=24, seed=2, temperature=1.5, top_k=20, repetition_penalty=1.3),
    SamplingParams(max_tokens=40, seed=3, temperature=2.0, min_p=0.01, stop=("e", "an", "0x")),
)


def in_engine(*batches: Sequence[int]) -> Callable[[Any], list[Any]]:
    """One engine, and batches of requests, places in PARAMS: ids, text and finish reason."""

    def run(parts: Any) -> list[Any]:
        llm, answers = tiny_llm(parts={"sampler": parts.sample, "detokenizer": parts.Detokenizer}), []
        for batch in batches:
            outputs = llm.generate(["Once upon a time"] * len(batch), [PARAMS[i] for i in batch])
            answers.append([[[c.token_ids, c.text, c.finish_reason] for c in out.outputs] for out in outputs])
        return answers

    return run


def engine_work(parts: Any) -> Words:
    """The tensor operations of four requests; with the engine's own parts they are about 9,000."""
    llm = tiny_llm(parts={"sampler": parts.sample, "detokenizer": parts.Detokenizer})
    with counted_work() as work:
        llm.generate(["Once upon a time"] * len(PARAMS), PARAMS)
    return few_ops(work, 20_000, "for four requests, the model's included")


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
            more_penalties,
        ),
        Task(
            "1.2",
            "top-k, then top-p",
            20,
            Part("minillm.ops.sampling", "keep_top"),
            TOP_CASES,
            TOP_MISTAKES,
            more_tops,
        ),
        Task(
            "1.3",
            "temperature and the filters, in order",
            15,
            Part("minillm.ops.sampling", "filter_logits"),
            FILTER_CASES,
            FILTER_MISTAKES,
            more_filters,
        ),
        Task(
            "1.4",
            "the draw, as a function of the key",
            20,
            Part("minillm.ops.sampling", "sample", helpers=("scores", "masked")),
            DRAW_CASES,
            DRAW_MISTAKES,
            more_draws,
        ),
        Task(
            "1.5",
            "stop strings that span pieces",
            15,
            Part("minillm.text.detokenizer", "StopMatcher", ("push",), ("_overlap",)),
            STOP_CASES,
            STOP_MISTAKES,
            more_stops,
        ),
        Task(
            "1.6",
            "never half a character, never a lost tail",
            10,
            Part("minillm.text.detokenizer", "Detokenizer", ("push", "finish"), ("_tail",)),
            STREAM_CASES,
            STREAM_MISTAKES,
            more_streams,
        ),
        Task(
            "1.7",
            "your sampler and detokenizer in the running engine",
            10,
            None,
            (
                Case("four requests at once", in_engine(range(4))),
                Case("other batches, one after the other", in_engine([3, 1], [2], [1, 0, 3]), "aliasing"),
                Case("the work for four requests", engine_work, "cost"),
            ),
        ),
    ),
)
