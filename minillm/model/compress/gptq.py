"""GPTQ: round the columns of a matrix one by one, and let the later ones repair what the earlier ones did.

Rounding to nearest makes each weight's error small. What counts is the error of the output on real inputs x,

    loss = mean of |W x - Q x|^2 = trace((W - Q) H (W - Q)^T)          H = mean of x x^T    [in, in]

and inputs that rise and fall together can cancel each other's errors. For each column c, from left to right:

    weights [out, in]    | rounded  |c| not rounded yet   |
                          <-- fixed   ^  -------->
                                      |  error / U[c, c] * U[c, c + 1:] is subtracted from these

U is upper triangular with U^T U = H^-1: row c has the best repair of column c by the columns after it. An
output does not depend on another output, so all are done at once.

A group's scale is fixed when its first column is reached, from the weights as they are then. The repair of
columns beyond the group is done once for the whole group, as one product. Inputs that the text never used
have a zero row in H: their weights are rounded to nearest.

H is often singular: inputs depend on each other, or there are fewer tokens than inputs. A part of its mean
diagonal is added (damping): 1 %, and ten times as much as long as the Cholesky factorisation fails.

Source: Frantar et al., "GPTQ" (arXiv 2210.17323). Left out: columns in the order of their activations, and
the search for smaller ranges.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from minillm.errors import WeightsError
from minillm.model.compress.grid import Grid, Rounded, joined, nearest, numbers, range_of

_log = logging.getLogger(__name__)
_DAMPINGS = (0.01, 0.1, 1.0)  # parts of the mean diagonal
_COLUMNS = 128  # whose repair is done at once where a group is a whole row


def hessian_of(inputs: Tensor) -> Tensor:
    """The mean of x x^T: inputs [num_tokens, in] -> float32 [in, in]."""
    rows = inputs.float()
    return rows.T @ rows / max(1, len(rows))


def gptq(weights: Tensor, repair: Tensor, grid: Grid, name: str = "a matrix") -> Rounded:
    """Round `weights` [out, in] column by column.

    Args:
        repair: `repair_of` the inputs' Hessian, [in, in].

    Raises:
        WeightsError: a weight, or a scale in its dtype, is NaN or infinite. `name` is in the message.
    """
    left = weights.float().clone()
    out, size = left.shape
    codes = torch.empty(out, size, dtype=torch.uint8)
    scales = torch.empty(out, grid.num_groups(size), dtype=grid.dtype)
    zeros = torch.empty(out, grid.num_groups(size))
    if not grid.group:
        scales[:, 0], zeros[:, 0] = range_of(left, grid)
    for first in range(0, size, grid.group or _COLUMNS):
        end = min(first + (grid.group or _COLUMNS), size)
        group = first // grid.group if grid.group else 0
        if grid.group:
            scales[:, group], zeros[:, group] = range_of(left[:, first:end], grid)
        errors = torch.empty(out, end - first)
        for c in range(first, end):
            column, fixed = left[:, c : c + 1], (scales[:, group], zeros[:, group], grid)
            codes[:, c : c + 1] = nearest(column, *fixed)
            error = (column - numbers(codes[:, c : c + 1], *fixed)) / repair[c, c]
            left[:, c:end] -= error * repair[c, c:end]
            errors[:, c - first] = error[:, 0]
        left[:, end:] -= errors @ repair[first:end, end:]
    return joined(grid, codes, scales, zeros, name)


def repair_of(hessian: Tensor, name: str = "a matrix") -> Tensor:
    """The upper triangular U with U^T U = H^-1, float32 [in, in], of a Hessian that is damped as needed.

    Raises:
        WeightsError: the Hessian has numbers that are NaN or infinite, or no damping is enough.
    """
    if not torch.isfinite(hessian).all():
        raise WeightsError(
            f"the inputs of {name} are NaN or infinite on the calibration text", "check the checkpoint"
        )
    exact = hessian.double()
    diagonal = exact.diagonal()
    unused = diagonal == 0
    diagonal[unused] = 1
    mean = diagonal[~unused].mean() if not unused.all() else torch.ones(())
    for damping in _DAMPINGS:
        if damping > _DAMPINGS[0]:
            _log.warning(f"{name}: the Hessian is not positive definite; damping raised to {damping:.0%}")
        damped = exact + torch.eye(len(exact), dtype=exact.dtype) * mean * damping
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not failed:
            repair: Tensor = upper.float()
            return repair
    raise WeightsError(
        f"the Hessian of {name} is not positive definite, even with damping", "use a longer calibration text"
    )


def loss(weights: Tensor, rounded: Rounded, hessian: Tensor) -> float:
    """The mean squared error of the output, summed over the outputs: trace((W - Q) H (W - Q)^T)."""
    error = (weights.float() - rounded.matrix().dequantize()).double()
    return float(((error @ hessian.double()) * error).sum())
