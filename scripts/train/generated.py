"""Stories that a model tells, many at once: another model learns from them, or is compared on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.clock import Budget
from train.data import Tokens
from train.model import Cache, LanguageModel

END_OF_TEXT_ID = 0
_LENGTH = 240


@torch.no_grad()
def continue_texts(
    model: LanguageModel, openings: Sequence[Tokens], length: int, temperatures: Tensor, seed: int
) -> Tensor:
    """Continue `openings` to [batch, length] tokens; `temperatures` [batch], 0 is greedy.

    All rows start at once, at one token per step: a row whose opening is not over takes its next
    token from there. A row goes on behind its end-of-text.
    """
    device = next(model.parameters()).device
    given = torch.full((len(openings), length), -1)
    for row, opening in enumerate(openings):
        given[row, : len(opening)] = torch.from_numpy(opening.astype(np.int64))
    given, temperatures = given.to(device), temperatures.to(device)[:, None]
    generator = torch.Generator(device).manual_seed(seed)
    ids, cache = given.clone(), Cache(length)
    for i in range(length - 1):
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(ids[:, i : i + 1], cache)[:, 0].float()
        # Gumbel noise: the argmax of logits + temperature * noise is a draw at that temperature.
        noise = -torch.empty_like(logits).exponential_(generator=generator).clamp_min(1e-10).log()
        drawn = (logits + temperatures * noise).argmax(-1)
        ids[:, i + 1] = torch.where(given[:, i + 1] >= 0, given[:, i + 1], drawn)
    return ids


def generated_documents(
    models: Sequence[LanguageModel],
    openings: list[Tokens],
    count: int,
    temperatures: tuple[float, ...],
    at_once: int,
    budget: Budget,
) -> list[Tokens]:
    """Up to `count` continuations of the first 4 to 16 tokens of training stories, by the models in turns.

    `temperatures` are used in turns; `at_once` stories are told together, until the budget is spent.
    """
    rng = np.random.default_rng(7)
    docs: list[Tokens] = []
    while len(docs) < count and budget.done() < 1:
        chosen = rng.choice(len(openings), min(at_once, len(openings)), replace=False)
        begun = [openings[i][: rng.integers(4, 17)] for i in chosen]
        taken = torch.tensor([temperatures[i % len(temperatures)] for i in range(len(begun))])
        turn = len(docs) // at_once
        texts = continue_texts(models[turn % len(models)], begun, _LENGTH, taken, seed=turn)
        docs += [first_story(row) for row in texts.cpu().numpy().astype(np.uint16)]
    return docs


def first_story(row: NDArray[Any]) -> NDArray[Any]:
    """The tokens up to the second end-of-text; the first leads the story."""
    ends = np.flatnonzero(row[1:] == END_OF_TEXT_ID)
    return row[: ends[0] + 1] if len(ends) else row
