"""A whole model on the CUDA kernels, on a GPU or in the simulator: a pass is one call (csrc/cuda/model).

    Python   index tensors, on the CPU -- one call -->  C++: one copy in, all kernels, one copy out, one wait

The single ops of `CudaOps` run one after the other take ten small copies and about ten calls a layer instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from minillm.ops.bound_model import BoundModel
from minillm.ops.contract import PackedWeight
from minillm.ops.fused import ModelWeights


class Launcher(Protocol):
    """Calls an overload of an op on a device, with its stream as the last argument."""

    def __call__(self, overload: Any, device: torch.device, *arguments: Any) -> Any: ...


class CudaModel(BoundModel):
    """`FusedModel` on CUDA kernels. Steps of one model run one at a time, on one stream.

    `tensor_cores`: the rungs that run on them are allowed; single ops must be told the same.
    """

    def __init__(
        self,
        namespace: str,
        launch: Launcher,
        weights: ModelWeights,
        k_cache: list[Tensor],
        v_cache: list[Tensor],
        tensor_cores: bool,
    ) -> None:
        super().__init__(namespace, weights, k_cache, v_cache)
        self._launch = launch
        self._bind_device = getattr(torch.ops, namespace).bind_device.default
        self.tensor_cores = tensor_cores
        self.fill_up_to([])

    def fill_up_to(self, sizes: Sequence[int]) -> None:
        """Fill up steps whose sequences have equally many rows to one of these numbers of sequences.

        On a GPU such a step is captured as a CUDA graph; the simulator only fills it up. The bits are those
        of the step as it is. No sizes: steps run as they are, as before the first call.
        """
        self._launch(self._bind_device, self.device, self.number, list(sizes), self.tensor_cores)

    def call(self, op: str, *arguments: Any) -> Any:
        return self._launch(self._ops[op], self.device, self.number, *arguments)


def can_run_fused(weights: ModelWeights) -> bool:
    """Whether a `CudaModel` can have these weights: every matrix must be as it was loaded, or quantised."""
    in_layers = (matrix for layer in weights.layers for matrix in layer.matrices())
    return all(
        matrix.form is not None if isinstance(matrix, PackedWeight) else isinstance(matrix, Tensor)
        for matrix in in_layers
    )
