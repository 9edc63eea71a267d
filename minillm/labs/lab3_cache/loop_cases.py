"""Tasks 3.5 and 3.6, the loops over the tiny model: cases and known mistakes of prefill and decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.engine.decode import decode
from minillm.engine.prefill import Chunk, prefill
from minillm.engine.request import Request
from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.memory.block_table import BlockTable
from minillm.model.runner import ModelRunner, SequenceRows
from minillm.text.detokenizer import NullDetokenizer

PROMPTS = ([11, 25, 38, 4, 57, 60, 7, 83, 9, 10, 31], [90, 1, 72, 3, 54, 25, 16])
NEXT = ([5, 40], [33, 8], [61, 61], [2, 17], [80, 12])  # output tokens, chosen by nobody


def setting(answer: Sequence[int] = ()) -> tuple[ModelRunner, list[Request]]:
    """A runner and two requests whose blocks will not be neighbours; the first has an `answer` so far."""
    engine = tiny_llm().engine
    requests = [
        Request("lab", i, list(prompt), SamplingParams(), 0, 8, BlockTable(engine.pool), NullDetokenizer())
        for i, prompt in enumerate(PROMPTS)
    ]
    requests[0].output_token_ids += answer
    return engine.runner, requests


def progress(requests: Sequence[Request]) -> list[Any]:
    """What a loop leaves in the requests."""
    return [[r.num_computed_tokens, list(r.block_table.block_ids)] for r in requests]


def prefill_case(name: str, *steps: Sequence[tuple[int, int, int]], answer: Sequence[int] = ()) -> Case:
    """Prefill in steps; a step is a list of (request, start, end)."""

    def run(loop: Callable[..., Tensor]) -> list[Any]:
        runner, requests = setting(answer)
        seen: list[Any] = []
        for step in steps:
            logits = loop(runner, [Chunk(requests[i], start, end) for i, start, end in step])
            seen.append([logits, progress(requests)])
        return seen

    return Case(name, run)


def decode_case(name: str, batch: Sequence[int], steps: int) -> Case:
    """Decode after an engine's prefill; tokens are given, as only the logits are in question."""

    def run(loop: Callable[..., Tensor]) -> list[Any]:
        runner, requests = setting()
        prefill(runner, [Chunk(r, 0, len(r.prompt_token_ids)) for r in requests])
        seen: list[Any] = []
        for tokens in NEXT[:steps]:
            running = [requests[i] for i in batch]
            for i in batch:
                requests[i].output_token_ids.append(tokens[i])
            seen.append([loop(runner, running), progress(requests)])
        return seen

    return Case(name, run)


def prefill_with(
    rows: Callable[[Chunk], tuple[list[int], int]] | None = None,
    grow_to: Callable[[Chunk], int] = lambda chunk: chunk.end,
    computed: Callable[[Chunk], int] = lambda chunk: chunk.end,
) -> Callable[..., Tensor]:
    """Prefill with one idea exchanged: (tokens, first position), blocks taken, progress noted."""

    def loop(runner: ModelRunner, chunks: Sequence[Chunk]) -> Tensor:
        batch = []
        for chunk in chunks:
            request = chunk.request
            request.block_table.grow(grow_to(chunk))
            tokens = request.tokens(chunk.start, chunk.end)
            tokens, start = rows(chunk) if rows else (tokens, chunk.start)
            batch.append(SequenceRows(tokens, start, request.block_table.block_ids))
        logits = runner.last_logits(batch)
        for chunk in chunks:
            chunk.request.num_computed_tokens = computed(chunk)
        return logits

    return loop


def prefill_one_by_one(runner: ModelRunner, chunks: Sequence[Chunk]) -> Tensor:
    """A list of results, one for each chunk, in the order of the prompts' lengths."""
    ordered = sorted(chunks, key=lambda chunk: len(chunk.request.prompt_token_ids))
    return torch.cat([prefill(runner, [chunk]) for chunk in ordered])


def decode_with(
    token: Callable[[Request], int] = lambda request: request.output_token_ids[-1],
    position: Callable[[Request], int] = lambda request: request.num_computed_tokens,
    step: int = 1,
    grows: bool = True,
) -> Callable[..., Tensor]:
    """Decode with one idea exchanged: the token, its position, the progress, the growth."""

    def loop(runner: ModelRunner, requests: Sequence[Request]) -> Tensor:
        batch = []
        for request in requests:
            at = position(request)
            if grows:
                request.block_table.grow(at + 1)
            batch.append(SequenceRows([token(request)], at, request.block_table.block_ids))
        logits = runner.last_logits(batch)
        for request in requests:
            request.num_computed_tokens += step
        return logits

    return loop


def decode_reversed(runner: ModelRunner, requests: Sequence[Request]) -> Tensor:
    """Rows in the order of the requests turned round."""
    return decode(runner, requests[::-1])


PREFILL_CASES = (
    prefill_case("a whole prompt", [(0, 0, 11)]),
    prefill_case("one prompt in two chunks", [(1, 0, 4)], [(1, 4, 7)]),
    prefill_case(
        "two prompts in chunks, side by side", [(0, 0, 5), (1, 0, 5)], [(0, 5, 10), (1, 5, 7)], [(0, 10, 11)]
    ),
    prefill_case("a preempted request, with its answer so far", [(0, 0, 9)], [(0, 9, 14)], answer=(5, 33, 2)),
)
PREFILL_MISTAKES = (
    Mistake(
        "positions restart at 0 in the second chunk: a chunk begins at chunk.start",
        prefill_with(lambda c: (c.request.tokens(c.start, c.end), 0)),
    ),
    Mistake(
        "the second chunk reads the prompt from its beginning: take tokens start to end",
        prefill_with(lambda c: (c.request.tokens(0, c.end - c.start), c.start)),
    ),
    Mistake(
        "only the prompt is read: a preempted request computes its answer so far again, too",
        prefill_with(lambda c: (c.request.prompt_token_ids[c.start : c.end], c.start)),
    ),
    Mistake(
        "blocks are taken for the chunk alone: the table must hold everything up to chunk.end",
        prefill_with(grow_to=lambda c: c.end - c.start),
    ),
    Mistake(
        "blocks are taken for the whole prompt at once: only up to chunk.end",
        prefill_with(grow_to=lambda c: len(c.request.prompt_token_ids)),
    ),
    Mistake(
        "num_computed_tokens stays where it was: the scheduler would plan the same chunk again",
        prefill_with(computed=lambda c: c.request.num_computed_tokens),
    ),
    Mistake(
        "num_computed_tokens is the size of the last chunk: it counts from the start of the prompt",
        prefill_with(computed=lambda c: c.end - c.start),
    ),
    Mistake("the rows of the logits are not in the order of the chunks", prefill_one_by_one),
)
DECODE_CASES = (
    decode_case("one request, three tokens", [0], 3),
    decode_case("two requests, five tokens, over the edge of a block", [0, 1], 5),
)
DECODE_MISTAKES = (
    Mistake(
        "the position is one too high: the newest token's own key is not in the cache yet",
        decode_with(position=lambda r: r.num_computed_tokens + 1),
    ),
    Mistake(
        "the position is one too low: it overwrites the key of the token before",
        decode_with(position=lambda r: r.num_computed_tokens - 1),
    ),
    Mistake(
        "the position counts output tokens only: the prompt comes before them",
        decode_with(position=lambda r: len(r.output_token_ids) - 1),
    ),
    Mistake(
        "the prompt's last token is run again; run the newest output token",
        decode_with(lambda r: r.prompt_token_ids[-1]),
    ),
    Mistake(
        "the first output token is run at every step; run the newest",
        decode_with(lambda r: r.output_token_ids[0]),
    ),
    Mistake(
        "the table does not grow: the new token's slot may lie in a block that is not there yet",
        decode_with(grows=False),
    ),
    Mistake("num_computed_tokens does not grow, so every token goes to the same slot", decode_with(step=0)),
    Mistake("the rows of the logits are not in the order of the requests", decode_reversed),
)
