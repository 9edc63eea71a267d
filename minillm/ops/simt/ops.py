"""`Ops` on the CUDA kernels in the simulator: slow, but every access is checked and can be counted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from minillm.ops.cuda import CudaOps
from minillm.ops.cuda_fakes import register_fakes
from minillm.ops.cuda_rungs import HEAD_DIMS, wants_tensor_cores
from minillm.ops.simt.machine import machine, raise_error
from minillm.toolchain.simt import ops_library

_CPU = torch.device("cpu")


class SimtOps(CudaOps):
    """`Ops` on CPU tensors; the simulator runs every kernel.

    Raises:
        BuildFailed: there is no compiler to build simulator and kernels with.
        SimtError: from any op, if a kernel made an error that the simulator detects.
    """

    name = "simt"
    namespace = "minillm_simt"

    def _head_dims(self) -> tuple[int, ...]:
        return HEAD_DIMS

    def _tensor_cores(self) -> bool:
        return wants_tensor_cores()

    def _load(self) -> str:
        return load_ops().name

    def _device(self) -> torch.device:
        return _CPU

    def _call(self, op: str, *arguments: Any) -> Any:
        return self._launch(getattr(self._ops, op).default, _CPU, *arguments)

    def _launch(self, overload: Any, device: torch.device, *arguments: Any) -> Any:
        try:
            return overload(*arguments, 0)
        except RuntimeError:
            raise_error()  # an error of the simulator has more detail
            raise


@cache
def load_ops() -> Path:
    """Compile the kernels for the simulator on first use and register them as `torch.ops.minillm_simt`.

    Raises:
        BuildFailed: they cannot be compiled here.
    """
    machine()  # first: the library's symbols are looked up in it
    path = ops_library().build()
    torch.ops.load_library(str(path))
    register_fakes(SimtOps.namespace)
    return path
