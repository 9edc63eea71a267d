"""Bits per byte on held-out stories, and how often the draft names the target's token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from train.data import Tokens
from train.generated import END_OF_TEXT_ID, continue_texts
from train.model import LanguageModel

_BATCH_TOKENS = 16384
_CONTEXT = 4096
_PROMPT_TOKENS, _AGREEMENT_PROMPTS, _AGREEMENT_LENGTH = 8, 64, 120


@torch.no_grad()
def bits_per_byte(model: LanguageModel, docs: Sequence[Tokens], token_bytes: NDArray[np.int64]) -> float:
    """Mean code length of the documents in bits per byte of their text.

    Each document is scored by itself, behind one end-of-text token; its own end is not scored.
    """
    model.eval()
    nats, num_bytes = 0.0, 0
    for batch in _batches([d[:_CONTEXT] for d in docs]):
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        targets = torch.full_like(ids, -100)
        for row, doc in enumerate(batch):
            ids[row, : len(doc)] = torch.from_numpy(doc.astype("int64"))
            targets[row, : len(doc) - 1] = ids[row, 1 : len(doc)]
            num_bytes += int(token_bytes[doc].sum())
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(ids.to(device)).float()
        nats += F.cross_entropy(
            logits.flatten(0, 1), targets.to(device).flatten(), reduction="sum", ignore_index=-100
        ).item()
    model.train()
    return nats / math.log(2) / num_bytes


def _batches(docs: list[Tokens]) -> list[list[Tokens]]:
    """Documents of similar length together, at most `_BATCH_TOKENS` padded tokens in a batch."""
    batches: list[list[Tokens]] = [[]]
    for doc in sorted(docs, key=len):
        if (len(batches[-1]) + 1) * len(doc) > _BATCH_TOKENS and batches[-1]:
            batches.append([])
        batches[-1].append(doc)
    return batches


def agreement(target: LanguageModel, draft: LanguageModel, valid: Sequence[Tokens]) -> float:
    """How often the draft's likeliest token is the target's, on the target's greedy stories.

    The stories continue the first words of validation stories. Positions behind a story's end do not
    count: a target that goes on there repeats itself, and is easy.
    """
    openings = [doc[:_PROMPT_TOKENS] for doc in valid[:_AGREEMENT_PROMPTS]]
    length = _PROMPT_TOKENS + _AGREEMENT_LENGTH
    text = continue_texts(target.eval(), openings, length, torch.zeros(len(openings)), seed=0)
    return argmax_agreement(target, draft.eval(), text, _PROMPT_TOKENS)


@torch.no_grad()
def argmax_agreement(
    target: LanguageModel, draft: LanguageModel, text: torch.Tensor, prompt_len: int
) -> float:
    """Share of the generated positions of `text` where the draft's likeliest token is the target's."""
    with torch.autocast(text.device.type, torch.bfloat16):
        ours = draft(text)[:, prompt_len - 1 : -1].argmax(-1)
        theirs = target(text)[:, prompt_len - 1 : -1].argmax(-1)
    ended = text[:, prompt_len:] == END_OF_TEXT_ID
    alive = ended.cumsum(1) - ended.long() == 0
    return (ours == theirs)[alive].float().mean().item()
