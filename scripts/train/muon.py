"""Muon: momentum whose update is made orthogonal, for all matrices of one shape at once.

torch.optim.Muon takes one matrix after another: about 30 small kernels each, which for small layers is
most of a training step. Here matrices of one shape are stacked and share each kernel.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the fifth-order Newton-Schulz step
_STEPS = 5


def orthogonal(updates: Tensor) -> Tensor:
    """Matrices [count, rows, columns] with their singular values moved to about 1; in bfloat16."""
    x = updates.bfloat16()
    wide = x.mT if x.shape[1] > x.shape[2] else x
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if x.shape[1] > x.shape[2] else wide


class Muon:
    """The optimizer: Nesterov momentum, decoupled weight decay, rates scaled by the matrix's shape."""

    def __init__(self, parameters: Iterable[Tensor], momentum: float, weight_decay: float) -> None:
        groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self._groups = [
            (group, torch.zeros(len(group), *shape, device=group[0].device))
            for shape, group in groups.items()
        ]
        self._momentum, self._weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at the learning rate `rate`; the gradients are dropped."""
        for group, velocity in self._groups:
            gradients = torch.stack([p.grad for p in group])
            velocity.lerp_(gradients, 1 - self._momentum)
            updates = orthogonal(gradients.lerp_(velocity, self._momentum)).float()
            rows, columns = velocity.shape[1:]
            torch._foreach_mul_(group, 1 - rate * self._weight_decay)
            torch._foreach_add_(group, updates.unbind(), alpha=-rate * max(1.0, rows / columns) ** 0.5)
            for parameter in group:
                parameter.grad = None
