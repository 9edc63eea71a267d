"""`Ops` on the CUDA kernels, run by the simulator: slow, exact, and everything they do can be seen."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from minillm.ops.cuda import CudaOps, register_fakes
from minillm.ops.simt.machine import machine, raise_error
from minillm.toolchain.simt import ops_library


class SimtOps(CudaOps):
    """The contract on CPU tensors, every kernel simulated.

    Raises:
        BuildFailed: there is no compiler to build simulator and kernels with.
        SimtError: from any op, when a kernel did what no kernel may do.
    """

    name = "simt"
    namespace = "minillm_simt"

    def _load(self) -> str:
        return load_ops().name

    def _call(self, op: str, *arguments: Any) -> Any:
        try:
            return getattr(self._ops, op).default(*arguments, 0)
        except RuntimeError:
            raise_error()  # says more, if it was the simulator
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
