"""Quantised experts for the tests of the CUDA kernels, in the simulator and on a GPU."""

from __future__ import annotations

import torch
from cases import random
from quantized_matrices import matrix, packed
from torch import Tensor

from minillm.config.quantization import Form
from minillm.ops.contract import Matrix, Ops, Routing, Weight, expert_rows


class QuantizedExperts:
    """Quantised experts of odd sizes, the rows that fill a matrix up among them."""

    def __init__(
        self,
        ops: Ops,
        form: Form,
        count: int,
        hidden: int,
        size: int,
        dtype: torch.dtype,
        device: str = "cpu",
    ) -> None:
        self._ops, self._dtype = ops, dtype
        self._shapes = [(2 * size, hidden), (hidden, size)]
        self._made = [
            matrix(form, count * expert_rows(out), inputs, seed=n)
            for n, (out, inputs) in enumerate(self._shapes)
        ]
        self._biases = [random(made.shape[0], seed=7).to(dtype).to(device) for made in self._made]
        self.matrices = [
            Matrix(packed(ops, made, dtype), bias)
            for made, bias in zip(self._made, self._biases, strict=True)
        ]

    def part(self, which: int, expert: int) -> tuple[Weight, Tensor]:
        """One expert's matrix, packed alone, and its bias."""
        out, first = self._shapes[which][0], expert * expert_rows(self._shapes[which][0])
        alone = packed(self._ops, self._made[which].rows(first, first + out), self._dtype)
        return alone, self._biases[which][first : first + out]


def check_experts(ops: Ops, form: Form, dtype: torch.dtype, device: str = "cpu") -> None:
    """Each token has the bits of single products with its experts' matrices; alone and in company."""
    stacked = QuantizedExperts(ops, form, 5, 40, 24, dtype, device)
    x, chosen = random(19, 40, seed=3).to(dtype).to(device), torch.tensor([[0, 3]] * 9 + [[1, 3]] * 10)
    routing = Routing(chosen.to(device), torch.tensor([[1.0, 0.0]] * 19).to(device))
    found = ops.experts(x, routing, *stacked.matrices, "silu")
    for rows in (slice(0, 1), slice(9, 19)):
        expert = int(chosen[rows][0, 0])
        gated = ops.act_and_mul(ops.linear(x[rows], *stacked.part(0, expert)))
        assert torch.equal(found[rows], ops.linear(gated, *stacked.part(1, expert)))
        part = Routing(*(each[rows] for each in routing))
        assert torch.equal(ops.experts(x[rows], part, *stacked.matrices, "silu"), found[rows])
