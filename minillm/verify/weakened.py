"""Controls: models with one deliberate fault each, which a comparison must notice.

A comparison that finds no difference proves nothing until it has found one. So each guarantee is also checked
with ops in which a matrix product breaks it in the smallest way, by one unit in the last place:

    G0   the product's last bits change from call to call, as with atomics that add in order of arrival
    G1   they depend on the number of rows: what the libraries of most machines do
    G2   the same: a chunk, a prefix hit and a draft each change the number of rows
    G3   they depend on the process
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minillm.model.loader import LoadedModel
from minillm.ops.contract import Ops, Weight
from minillm.ops.sampling import mix64

RUN, BATCH, REPLICA = "run", "batch", "replica"
WHAT = {
    RUN: "a matrix product whose last bits change from call to call",
    BATCH: "a matrix product whose last bits depend on the number of rows",
    REPLICA: "a matrix product whose last bits depend on the process",
}


class WeakenedOps:
    """`Ops` whose `linear` breaks a guarantee. `fault`: one of the names above."""

    def __init__(self, inner: Ops, fault: str) -> None:
        self._inner, self._fault, self._calls = inner, fault, 0
        self.name = inner.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """The product, moved by one unit in the last place where the fault says so."""
        result = self._inner.linear(x, weight, bias)
        self._calls += 1
        # A hash of the number of the call has no period that the calls of a pass could fit.
        is_moved = {RUN: mix64(self._calls) & 1, BATCH: len(x) > 1, REPLICA: True}[self._fault]
        return one_unit_more(result) if is_moved else result


def one_unit_more(x: Tensor) -> Tensor:
    """`x` with every number's magnitude one unit in the last place larger; 0 stays."""
    kind = {2: torch.int16, 4: torch.int32}[x.dtype.itemsize]
    bits = x.contiguous().view(kind)
    return torch.where(x == 0, bits, bits + 1).view(x.dtype)


def weakened(model: LoadedModel, fault: str) -> LoadedModel:
    """The same model with a fault; its weights are shared."""
    ops: Any = WeakenedOps(model.decoder.ops, fault)
    return replace(model, decoder=model.decoder.with_ops(ops))
