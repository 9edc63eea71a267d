"""Bits per byte on held-out stories, and how often draft and target have the same most likely token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from train.data import Tokens
from train.model import LanguageModel

_BATCH_TOKENS = 16384
_CONTEXT = 4096
END_OF_TEXT = 0


@torch.no_grad()
def bits_per_byte(model: LanguageModel, docs: Sequence[Tokens], tokenizer: Tokenizer) -> float:
    """Mean code length of the documents in bits per byte of their text.

    Each document is scored separately, after one end-of-text token; its own end-of-text is not scored.
    """
    model.eval()
    nats, num_bytes = 0.0, 0
    for batch in _batches([d[:_CONTEXT] for d in docs]):
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        targets = torch.full_like(ids, -100)
        for row, doc in enumerate(batch):
            ids[row, : len(doc)] = torch.from_numpy(doc.astype("int64"))
            targets[row, : len(doc) - 1] = ids[row, 1 : len(doc)]
            num_bytes += len(tokenizer.decode(doc.tolist()).encode())
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(ids.to(device)).float()
        nats += F.cross_entropy(
            logits.flatten(0, 1), targets.to(device).flatten(), reduction="sum", ignore_index=-100
        ).item()
    model.train()
    return nats / math.log(2) / num_bytes


def _batches(docs: list[Tokens]) -> list[list[Tokens]]:
    """Batches of documents of similar length, with at most `_BATCH_TOKENS` tokens including padding."""
    batches: list[list[Tokens]] = [[]]
    for doc in sorted(docs, key=len):
        if (len(batches[-1]) + 1) * len(doc) > _BATCH_TOKENS and batches[-1]:
            batches.append([])
        batches[-1].append(doc)
    return batches


@torch.no_grad()
def greedy_text(model: LanguageModel, prompts: torch.Tensor, length: int) -> torch.Tensor:
    """Greedy continuations of prompts of equal length [batch, n] -> [batch, n + length]; without a cache."""
    ids = prompts
    for _ in range(length):
        with torch.autocast(ids.device.type, torch.bfloat16):
            ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


@torch.no_grad()
def argmax_agreement(
    target: LanguageModel, draft: LanguageModel, text: torch.Tensor, prompt_len: int
) -> float:
    """Share of the generated positions of `text` where draft and target have the same most likely token.

    Positions after the end of a story do not count: there the target repeats itself and is easy to guess.
    """
    with torch.autocast(text.device.type, torch.bfloat16):
        ours = draft(text)[:, prompt_len - 1 : -1].argmax(-1)
        theirs = target(text)[:, prompt_len - 1 : -1].argmax(-1)
    ended = text[:, prompt_len:] == END_OF_TEXT
    alive = ended.cumsum(1) - ended.long() == 0
    return (ours == theirs)[alive].float().mean().item()
