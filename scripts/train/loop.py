"""The training loop: Muon for the matrices, AdamW for the rest; the rate is constant, then decays.

    learning rate   /----------------\\              windows, target   256 | 512 | 4096
                   /                  \\______ 0       until            75 %  92 %  100 % of the steps
                                                    windows, draft    256 | 256 512 256 4096, in turns
                                                    until            40 %  100 %

Matrices of hidden layers are trained with Muon (orthogonalised updates), embeddings and norms with AdamW.
Most steps use short windows, since most stories are short. Some steps use long documents, so that the model
learns positions up to 4,096. The target has its long windows at the end, which is cheapest. The single
layer of the draft would forget short texts in such a phase (from 0.84 to 0.86 bits per byte on the same
stories), so its long windows alternate with short ones. A checkpoint holds the whole state, so a killed run
can be resumed.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.data import Mixture
from train.model import LanguageModel

TOKENS_PER_STEP = 8192
MUON_RATE, ADAM_RATE = 0.02, 4e-3
_WARM_UP_STEPS = 40
_DECAY_SHARE = 0.55
_SAVE_EVERY = 100

# (model, ids [batch, length + 1]) -> scalar loss
Loss = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
Report = Callable[[int, float, dict[str, float]], None]
# (step, steps) -> tokens of a window
Windows = Callable[[int, int], int]


def learning_rate(step: int, steps: int) -> float:
    """Factor of the learning rate at `step` of `steps`: warm-up, constant, linear decay to zero."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * min(1.0, (steps - step) / (_DECAY_SHARE * steps))


def long_last(step: int, steps: int) -> int:
    """Tokens per window at `step` of the target's training."""
    done = step / steps
    return 256 if done < 0.75 else 512 if done < 0.92 else 4096


def long_in_turns(step: int, steps: int) -> int:
    """Tokens per window at `step` of the draft's training."""
    return 256 if step < 0.4 * steps else (256, 512, 256, 4096)[step % 4]


class Trainer:
    """One model in training; `run` continues from the current step to a number of steps."""

    def __init__(
        self,
        model: LanguageModel,
        mixture: Mixture,
        checkpoint: Path,
        loss: Loss,
        windows: Windows,
        peak: float = 1.0,
    ) -> None:
        self.model, self._mixture, self._checkpoint = model, mixture, checkpoint
        self._loss, self._windows, self._peak = loss, windows, peak
        self.step = 0
        named = list(model.named_parameters())
        hidden = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        self._rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self._muon = torch.optim.Muon(hidden, lr=MUON_RATE, momentum=0.95, weight_decay=0.1)
        self._adam = torch.optim.AdamW(self._rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
        if checkpoint.is_file():
            self._restore(torch.load(checkpoint, weights_only=True))

    def run(self, steps: int, report: Report) -> None:
        """Train until step `steps`; calls `report(step, loss, info)` after each step."""
        device = next(self.model.parameters()).device
        compiled = torch.compile(self.model, dynamic=False)
        while self.step < steps:
            length = self._windows(self.step, steps)
            batch = self._mixture.batch(self.step, TOKENS_PER_STEP // length, length)
            rate = self._peak * learning_rate(self.step, steps)
            self._set_rate(rate)
            with torch.autocast(device.type, torch.bfloat16):
                loss = self._loss(compiled, torch.from_numpy(batch).to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._rest, 1.0)
            for optimizer in (self._muon, self._adam):
                optimizer.step()
                optimizer.zero_grad()
            self.step += 1
            report(self.step, loss.item(), {"window": length, "rate": rate})
            if self.step % _SAVE_EVERY == 0 or self.step == steps:
                self._save()

    def _set_rate(self, share: float) -> None:
        for optimizer, rate in ((self._muon, MUON_RATE), (self._adam, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def _save(self) -> None:
        """Write to another file, then rename it: a run killed here does not damage the old checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "muon": self._muon.state_dict(),
            "adam": self._adam.state_dict(),
            "step": self.step,
            "mixture": self._mixture.state(),
        }
        beside = self._checkpoint.with_suffix(".tmp")
        torch.save(state, beside)
        os.replace(beside, self._checkpoint)

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
        self.step = state["step"]
        self._mixture.restore(state["mixture"])


def next_token_loss(model: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Mean cross-entropy of each next token; ids [batch, length + 1]."""
    logits = model(ids[:, :-1]).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def distillation_loss(target: LanguageModel) -> Loss:
    """Mean cross-entropy of the draft's distribution and the target's: the draft imitates the target.

    A good draft often proposes the token that the target samples, whether or not the text continues with it.
    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531).
    """
    teacher = torch.compile(target.eval().requires_grad_(False), dynamic=False)

    def loss(model: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(ids[:, :-1]).float().softmax(-1)
        logprobs = model(ids[:, :-1]).float().log_softmax(-1)
        return -(wanted * logprobs).sum(-1).mean()

    return loss
