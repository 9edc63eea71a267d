"""Task 1.4, the draw of a token: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.config.sampling import SamplingFilters
from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.tiny_model import random_tensor
from minillm.ops.sampling import (
    NEG_INF,
    Filters,
    SamplingBatch,
    filter_logits,
    gumbel_noise,
    noise_key,
    penalise_repetition,
    sample,
    uniforms,
)

GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=1.0)


def draw_case(name: str, params: SamplingParams, rows: int, seen: Sequence[int] = (), ids: int = 12) -> Case:
    """Draw one token for each of `rows` rows; return the tokens and the logits, which must not change."""

    def run(draw: Callable[..., Tensor]) -> list[Tensor]:
        logits = random_tensor(5, rows, 12).round(decimals=1)
        keys = [noise_key(3, 0, row) for row in range(rows)]
        return [draw(logits, SamplingBatch([params] * rows, keys, [seen] * rows, ids)), logits]

    return Case(name, run)


def tie_case(draw: Callable[..., Tensor]) -> Tensor:
    """Greedy over two equal logits."""
    return draw(torch.tensor([[0.0, 3.0, 1.0, 3.0]]), SamplingBatch([GREEDY], [1], [()], 4))


def at_temperature(temperature: float, params: Filters) -> SamplingFilters:
    """The filters at another temperature."""
    return SamplingFilters(temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty)


def drawn_with(noise: Callable[[Sequence[int], int], Tensor]) -> Callable[..., Tensor]:
    """The sampler with `noise` instead of Gumbel noise."""

    def draw(logits: Tensor, batch: SamplingBatch) -> Tensor:
        tokens = sample(logits, replace(batch, params=[at_temperature(0.0, p) for p in batch.params]))
        for row, params in enumerate(batch.params):
            if params.temperature > 0:
                masked = logits[row].clone()
                masked[batch.num_token_ids :] = NEG_INF
                if params.repetition_penalty != 1.0:
                    masked = penalise_repetition(masked, batch.seen[row], params.repetition_penalty)
                added = noise(batch.keys, logits.shape[1])[row]
                tokens[row] = (filter_logits(masked, params).double() + added).argmax()
        return tokens

    return draw


def sample_in_place(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The tokens are correct, but the mask is written into the argument."""
    logits[:, batch.num_token_ids :] = NEG_INF
    return sample(logits, batch)


DRAW_CASES = (
    draw_case("greedy", GREEDY, 3),
    Case("greedy, a tie", tie_case),
    draw_case("8 rows at temperature 1", WARM, 8),
    draw_case("temperature 2, top-k 3", SamplingParams(temperature=2.0, top_k=3), 8),
    draw_case("penalty 5 on seen ids, greedy", replace(GREEDY, repetition_penalty=5.0), 3, seen=range(6)),
    draw_case("only ids below 4 exist", WARM, 8, ids=4),
)
DRAW_MISTAKES = (
    Mistake(
        "no noise is added: the result is always the argmax",
        drawn_with(lambda keys, n: torch.zeros(len(keys), n)),
    ),
    Mistake("uniform noise is added; sampling from a softmax needs Gumbel noise", drawn_with(uniforms)),
    Mistake(
        "every row uses the first row's key, so all rows get the same noise",
        drawn_with(lambda keys, n: gumbel_noise([keys[0]] * len(keys), n)),
    ),
    Mistake(
        "noise is added at temperature 0 too; greedy is the plain argmax",
        lambda x, batch: sample(
            x, replace(batch, params=[at_temperature(p.temperature or 1.0, p) for p in batch.params])
        ),
    ),
    Mistake(
        "ids that the tokenizer does not have can be drawn: mask them first",
        lambda x, b: sample(x, replace(b, num_token_ids=x.shape[1])),
    ),
    Mistake("the repetition penalty is missing", lambda x, b: sample(x, replace(b, seen=[()] * len(b.seen)))),
    Mistake("the argument `logits` is changed; the engine still reads logprobs from it", sample_in_place),
    Mistake(
        "of equal logits the highest id is taken: take the lowest",
        lambda x, b: sample(x, b) if x.shape[1] != 4 else x.shape[1] - 1 - x.flip(1).argmax(1),
    ),
)
