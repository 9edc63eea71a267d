"""The training loop: Muon for the matrices, AdamW for the rest, a constant rate and a long decay.

    learning rate   /-----------------\\             warm-up by steps, decay by the time that is left
                   /                   \\______ 0
    windows         512 512 512 4096 512 512 ...    in turns, so that positions up to 4,096 are sound

Matrices of hidden layers are trained with Muon (updates made orthogonal), embeddings and norms with
AdamW. The text is read 10 times and more, so dropout and weight decay are strong, and the weights
kept are those of the best check on held-out stories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from train.clock import Budget
from train.data import Mixture
from train.model import LanguageModel
from train.muon import Muon

MUON_RATE, ADAM_RATE = 0.015, 3e-3
_WARM_UP_STEPS = 40
_DECAY_SHARE = 0.55
_WINDOWS = (512, 512, 512, 4096)
_CHECKS = 12

# (model, ids [batch, length + 1]) -> scalar loss
Loss = Callable[[LanguageModel, Tensor], Tensor]
# (step, loss, learning rate's share)
Check = Callable[[int, float, float], None]


def learning_rate(step: int, done: float) -> float:
    """Share of the full rate: warm-up by steps, constant, linear decay to zero as `done` goes to 1."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * min(1.0, (1 - done) / _DECAY_SHARE)


class Trainer:
    """One model in training."""

    def __init__(
        self,
        model: LanguageModel,
        mixture: Mixture,
        loss: Loss,
        batch_tokens: int,
        weight_decay: float,
        peak: float,
    ) -> None:
        self._model, self._mixture, self._loss = model, mixture, loss
        self._batch_tokens, self._peak = batch_tokens, peak
        self._device = next(model.parameters()).device
        named = list(model.named_parameters())
        hidden = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        self._rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self._muon = Muon(hidden, momentum=0.95, weight_decay=weight_decay)
        self._adam = torch.optim.AdamW(
            self._rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def run(self, budget: Budget, check: Check) -> None:
        """Train until the budget is spent; `check` at equal distances and at the end."""
        self._model.train()
        step, checked, loss = 0, 0, torch.zeros(())
        while (done := budget.done()) < 1:
            rate = self._peak * learning_rate(step, done)
            loss = self._step(step, rate)
            step += 1
            if done * _CHECKS >= checked + 1:
                checked = int(done * _CHECKS)
                check(step, loss.item(), rate)
        if step:
            check(step, loss.item(), 0.0)

    def _step(self, step: int, rate: float) -> Tensor:
        length = _WINDOWS[step % len(_WINDOWS)]
        ids = torch.from_numpy(self._mixture.batch(step, max(1, self._batch_tokens // length), length))
        if self._device.type == "cuda":
            ids = ids.pin_memory()  # else the copy waits for the step before
        with torch.autocast(self._device.type, torch.bfloat16):
            loss = self._loss(self._model, ids.to(self._device, non_blocking=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._rest, 1.0)
        self._muon.step(MUON_RATE * rate)
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        self._adam.step()
        self._adam.zero_grad()
        return loss.detach()


def next_token_loss(model: LanguageModel, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each next token; ids [batch, length + 1]."""
    logits = model(ids[:, :-1]).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def distillation_loss(teachers: Sequence[LanguageModel]) -> Loss:
    """Mean cross-entropy against the teachers' mean distribution: imitate, not predict.

    A draft is judged by how often it names the token the target would have drawn. A target that
    imitates several teachers overfits less than each of them.
    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531).
    """

    def loss(model: LanguageModel, ids: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = sum(teacher(ids[:, :-1]).float().softmax(-1) for teacher in teachers) / len(teachers)
        logprobs = model(ids[:, :-1]).float().log_softmax(-1)
        return -(wanted * logprobs).sum(-1).mean()

    return loss
