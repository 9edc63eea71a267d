"""Task 1.4, the draw of a token: known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minillm.config.sampling import SamplingFilters
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab1_sampling.draw_cases import Draw
from minillm.ops.sampling import (
    NEG_INF,
    Filters,
    SamplingBatch,
    filter_logits,
    gumbel_noise,
    penalise_repetition,
    sample,
    uniforms,
)

Noise = Callable[[Sequence[int], int], Tensor]


def at_temperature(temperature: float, params: Filters) -> SamplingFilters:
    """The filters at another temperature."""
    return SamplingFilters(temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty)


def penalised(logits: Tensor, batch: SamplingBatch, row: int) -> Tensor:
    """A row after the repetition penalty."""
    penalty = batch.params[row].repetition_penalty
    return penalise_repetition(logits, batch.seen[row], penalty) if penalty != 1.0 else logits


def existing(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The logits, in a copy, without ids that the tokenizer does not have."""
    masked = logits.float().clone()
    masked[:, batch.num_token_ids :] = NEG_INF
    return masked


def drawn_with(noise: Noise, filtered: Callable[[Tensor, Filters], Tensor] = filter_logits) -> Draw:
    """The sampler with other noise or other filters. `noise` gets the keys of the rows that are drawn."""

    def draw(logits: Tensor, batch: SamplingBatch) -> Tensor:
        scores = existing(logits, batch).double()
        for row in range(len(scores)):
            scores[row] = penalised(scores[row].float(), batch, row)
        drawn = [row for row, params in enumerate(batch.params) if params.temperature > 0]
        if drawn:
            added = noise([batch.keys[row] for row in drawn], logits.shape[1])
            for row, extra in zip(drawn, added, strict=True):
                scores[row] = filtered(scores[row].float(), batch.params[row]).double() + extra
        return scores.argmax(-1)

    return draw


def multinomial(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Draws with torch.multinomial."""
    tokens = sample(logits, replace(batch, params=[at_temperature(0.0, p) for p in batch.params]))
    scores = existing(logits, batch)
    for row, params in enumerate(batch.params):
        if params.temperature > 0:
            kept = filter_logits(penalised(scores[row], batch, row), params)
            tokens[row] = kept.softmax(-1).multinomial(1)[0]
    return tokens


def from_seeded_generators(keys: Sequence[int], vocab_size: int) -> Tensor:
    """Gumbel noise of torch's generators, seeded by the keys."""
    rows = [torch.rand(vocab_size, generator=torch.Generator().manual_seed(key)) for key in keys]
    return -(-torch.stack(rows).log()).log()


def from_global_generator(keys: Sequence[int], vocab_size: int) -> Tensor:
    """Gumbel noise of torch's global generator."""
    return -(-torch.rand(len(keys), vocab_size).log()).log()


def first_keys(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The drawn rows get the keys of the batch's first rows."""
    spare = iter(batch.keys)
    return sample(
        logits, replace(batch, keys=[next(spare) if p.temperature > 0 else 0 for p in batch.params])
    )


def sample_in_place(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The tokens are correct, but the mask is written into the argument."""
    logits[:, batch.num_token_ids :] = NEG_INF
    return sample(logits, batch)


def changes_all(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The tokens are correct, but mask and penalty are written into the argument."""
    tokens = sample(logits, batch)
    logits[:, batch.num_token_ids :] = NEG_INF
    for row in range(len(logits)):
        logits[row] = penalised(logits[row].float(), batch, row)
    return tokens


def penalty_after_filters(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The penalty comes after temperature and filters."""
    scores = existing(logits, batch).double()
    for row, params in enumerate(batch.params):
        if params.temperature > 0:
            scores[row] = filter_logits(scores[row].float(), params)
        scores[row] = penalised(scores[row].float(), batch, row)
        if params.temperature > 0:
            scores[row] += gumbel_noise([batch.keys[row]], logits.shape[1])[0]
    return scores.argmax(-1)


def last_of_equals(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Of equal logits the highest id is taken."""
    mirrored = logits.flip(1) if logits.shape[1] == 4 else logits
    return logits.shape[1] - 1 - sample(mirrored, batch) if mirrored is not logits else sample(logits, batch)


GENERATOR = (
    "random numbers come from torch's global generator, so a token depends on the other requests: "
    "add gumbel_noise of the row's key"
)
DRAW_MISTAKES = (
    Mistake(
        "no noise is added: the result is always the argmax",
        drawn_with(lambda keys, n: torch.zeros(len(keys), n)),
    ),
    Mistake("uniform noise is added; sampling from a softmax needs Gumbel noise", drawn_with(uniforms)),
    Mistake(
        "every row uses the first row's key, so all rows get the same noise",
        lambda x, batch: sample(x, replace(batch, keys=[batch.keys[0]] * len(batch.keys))),
    ),
    Mistake("keys and rows do not match: a greedy row takes no noise, but it has a key too", first_keys),
    Mistake("the noise is subtracted: add it", drawn_with(lambda keys, n: -gumbel_noise(keys, n))),
    Mistake(GENERATOR, drawn_with(from_global_generator)),
    Mistake(f"torch.multinomial: {GENERATOR}", multinomial),
    Mistake(
        "a generator is seeded with the key: this gives other numbers than gumbel_noise of the key",
        drawn_with(from_seeded_generators),
    ),
    Mistake(
        "noise is added at temperature 0 too; greedy is the plain argmax",
        lambda x, batch: sample(
            x, replace(batch, params=[at_temperature(p.temperature or 1.0, p) for p in batch.params])
        ),
    ),
    Mistake(
        "temperature and filters are missing: call filter_logits for every row above temperature 0",
        drawn_with(gumbel_noise, lambda x, params: x),
    ),
    Mistake(
        "all rows use the first row's parameters: each row has its own",
        lambda x, batch: sample(x, replace(batch, params=[batch.params[0]] * len(batch.params))),
    ),
    Mistake(
        "all rows use the first row's seen ids: each row has its own",
        lambda x, batch: sample(x, replace(batch, seen=[batch.seen[0]] * len(batch.seen))),
    ),
    Mistake(
        "ids that the tokenizer does not have can be drawn: mask them first",
        lambda x, b: sample(x, replace(b, num_token_ids=x.shape[1])),
    ),
    Mistake("the repetition penalty is missing", lambda x, b: sample(x, replace(b, seen=[()] * len(b.seen)))),
    Mistake("the repetition penalty comes after the filters: it comes before them", penalty_after_filters),
    Mistake("the argument `logits` is changed; the engine still reads logprobs from it", sample_in_place),
    Mistake(
        "the argument `logits` is changed by mask and penalty; the engine still reads logprobs from it",
        changes_all,
    ),
    Mistake("of equal logits the highest id is taken: take the lowest", last_of_equals),
)
