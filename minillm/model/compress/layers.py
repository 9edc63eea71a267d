"""Quantises a decoder layer by layer, each on the outputs of the quantised layers before it.

    hidden states --> layer i:  qkv          its input arrives: H, round q, k, v, go on with the new weights
                                attention
                                o            likewise
                                gate_up      likewise: gate and up share an input and so a Hessian
                                down         likewise
                  --> the hidden states of layer i + 1

All tokens of the calibration text pass a layer in one call. So when `Ops.linear` is called with a matrix, `x`
has all of its inputs, and everything before it is quantised already: one pass is enough. Each expert of a
mixture has its own inputs, those of the tokens that chose it; an expert that no token chose is rounded to
nearest. Without a text all matrices are.

Memory: the model in float32, and the widest activation of all tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from minillm.errors import UnsupportedModel, UsageError, WeightsError
from minillm.model.blocks import Experts, Layer, Linear
from minillm.model.compress.gptq import gptq, hessian_of, repair_of
from minillm.model.compress.grid import Grid, Rounded, round_to_nearest
from minillm.model.compress.text import Windows
from minillm.model.decoder import Decoder, storage_of
from minillm.model.families import FAMILIES
from minillm.model.placement import layer_placements
from minillm.model.quantization.plan import DENSE, MIXTURE
from minillm.ops.contract import Weight, plain
from minillm.ops.reference import ReferenceOps


@dataclass(frozen=True, eq=False)
class Module:
    """One matrix of the checkpoint, named without ".weight": rows of a parameter of the decoder [out, in].

    `matrix`: where the matrix begins that `Ops.linear` is called with: the fused one, or an expert's.
    """

    name: str
    rows: Tensor
    matrix: int

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.rows.shape[0], self.rows.shape[1]


class WatchedOps(ReferenceOps):
    """`ReferenceOps` that shows each waiting matrix its inputs, once, before they are multiplied."""

    def __init__(self) -> None:
        self.waiting: dict[int, Callable[[Tensor], None]] = {}

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor) and (show := self.waiting.pop(weight.data_ptr(), None)):
            show(x)
        return super().linear(x, weight, bias)


def modules_of(decoder: Decoder) -> list[list[Module]]:
    """The matrices of each layer that are quantised: all but routers, in the order of the checkpoint.

    Raises:
        UnsupportedModel: the family stores its matrices transposed, or all experts in one tensor.
    """
    config = decoder.config
    names = FAMILIES[config.family].names
    if names.transposed or names.interleaved:
        raise UnsupportedModel(
            f"{config.family} checkpoints cannot be quantised: their matrices are stored transposed",
            "supported: families that store each matrix as [out, in]",
        )
    found = []
    for i, layer in enumerate(cast(list[Layer], decoder.layers)):
        prefix, modules = names.prefix + names.layer.format(i=i), []
        linears = {
            storage_of(plain(linear.weight)): _starts(linear, layer.mlp)
            for name, linear in layer.linears().items()
            if name in (*DENSE, *MIXTURE)
        }
        for name, placement in layer_placements(layer, config, names).items():
            starts = linears.get(storage_of(placement.view))
            if starts and name.endswith(".weight"):
                start = starts[bisect_right(starts, placement.view.data_ptr()) - 1]
                modules.append(Module(prefix + name.removesuffix(".weight"), placement.view, start))
        found.append(modules)
    return found


def require_numbers(modules: Iterable[Module]) -> None:
    """Refuse weights that are no numbers, before the long part of the work.

    Raises:
        WeightsError: one is NaN or infinite; its matrix is named.
    """
    for module in modules:
        if not torch.isfinite(module.rows).all():
            raise WeightsError(
                f"{module.name} cannot be quantised: a weight is NaN or infinite", "check the checkpoint"
            )


def _starts(linear: Linear, mlp: object) -> list[int]:
    """Where the matrices begin that `Ops.linear` is called with."""
    weight = plain(linear.weight)
    if isinstance(mlp, Experts) and linear in (mlp.gate_up, mlp.down):
        return [expert.data_ptr() for expert in weight.unflatten(0, (mlp.spec.count, -1))]
    return [weight.data_ptr()]


def without(modules: list[list[Module]], ignored: Sequence[str]) -> list[list[Module]]:
    """The modules whose name, or its end after a dot, is not in `ignored`.

    Raises:
        UsageError: a name that no module has, or only a part of a fused matrix is left out.
    """

    def is_named(module: Module, name: str) -> bool:
        return module.name == name or module.name.endswith(f".{name}")

    every = [module for layer in modules for module in layer]
    for name in ignored:
        if not any(is_named(module, name) for module in every):
            known = ", ".join(dict.fromkeys(module.name.rpartition(".")[2] for module in every))
            raise UsageError(f"no quantised matrix is called {name!r}", f"there are {known}")
    left = {m.name for m in every if not any(is_named(m, name) for name in ignored)}
    for layer in modules:
        for matrix in {module.matrix for module in layer}:
            fused = [module.name for module in layer if module.matrix == matrix]
            if 0 < len(left.intersection(fused)) < len(fused):
                raise UsageError(
                    f"{', '.join(name.rpartition('.')[2] for name in fused)} are one matrix for an engine",
                    "ignore all of them, or none",
                )
    return [[module for module in layer if module.name in left] for layer in modules]


def linear_but_plain(decoder: Decoder, every: list[list[Module]], chosen: Container[str]) -> list[str]:
    """Names of the matrices that stay as they are: the head, routers, and all of `every` not in `chosen`."""
    names = FAMILIES[decoder.config.family].names
    left = [names.head]
    for i, layer in enumerate(every):
        if decoder.config.layers[i].experts is not None:
            left.append(f"{names.prefix}{names.layer.format(i=i)}{names.parts['router']}")
        left += [module.name for module in layer if module.name not in chosen]
    return left


def quantize_layers(
    decoder: Decoder, modules: list[list[Module]], grid: Grid, text: Windows | None
) -> Iterator[dict[str, Rounded]]:
    """Quantise layer after layer; each step yields the matrices of one by name.

    The decoder's own weights are replaced by the rounded ones.

    Args:
        text: to calibrate on; None: round to nearest. The decoder's ops must then be `WatchedOps`.

    Raises:
        WeightsError: weights or inputs that are NaN or infinite, or a Hessian that cannot be factored.
    """
    if text is None:
        for layer in modules:
            yield {module.name: _rounded(module, grid) for module in layer}
        return
    watched, meta = decoder.ops, text.metadata()
    if not isinstance(watched, WatchedOps):
        raise TypeError("calibration needs a decoder over WatchedOps")
    x, residual = decoder.begin(text.ids.flatten(), meta)
    for i, layer in enumerate(modules):
        made = dict[str, Rounded]()
        for matrix in {module.matrix for module in layer}:
            fused = [module for module in layer if module.matrix == matrix]
            watched.waiting[matrix] = partial(_calibrate, fused, grid, made)
        cache = text.cache(decoder.config)
        x, residual = decoder.run_layer(i, x, residual, cache, meta)
        watched.waiting.clear()
        for module in layer:
            if module.name not in made:  # an expert that no token chose
                made[module.name] = _rounded(module, grid)
        yield made


def _calibrate(fused: list[Module], grid: Grid, made: dict[str, Rounded], inputs: Tensor) -> None:
    """Put into `made` matrices with the same inputs [num_tokens, in], rounded by GPTQ."""
    repair = repair_of(hessian_of(inputs), fused[0].name)
    for module in fused:
        made[module.name] = _settle(module, gptq(module.rows, repair, grid, module.name))


def _rounded(module: Module, grid: Grid) -> Rounded:
    return _settle(module, round_to_nearest(module.rows, grid, module.name))


def _settle(module: Module, rounded: Rounded) -> Rounded:
    """Put the rounded weights into the decoder."""
    module.rows.copy_(rounded.matrix().dequantize())
    return rounded
