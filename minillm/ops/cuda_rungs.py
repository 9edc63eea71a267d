"""Which CUDA kernel runs: the sizes and rungs that there are, and what tensor cores cannot take.

The engine's own choice between rungs is made in C++ (csrc/cuda/model/rungs.h), alike for single ops and for a
whole pass. Here is only what a caller may ask for.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from minillm.errors import UsageError

HEAD_DIMS = (32, 64, 96, 128, 256)
TENSOR_HEAD_DIMS = (64, 128)
# The kernels that `rung` can select: for attention, and for linear.
ATTENTION_RUNGS = ("v1", "v2", "d1")
LINEAR_RUNGS = ("l1", "l2", "l3", "l4", "l5")
TENSOR_RUNGS = {
    "v3": "v2",
    "d2": "d1",
    "d3": "d1",
}  # attention on tensor cores; the rung that runs if they cannot
UNTESTED_RUNGS = {"v4": "v2"}  # they have run in the simulator only
INSTEAD = TENSOR_RUNGS | UNTESTED_RUNGS | {"l4": "l2", "l5": "l2"}
# The numbers of sequences for which a decode step is captured as a CUDA graph.
GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)


def wants_tensor_cores() -> bool:
    """False if MINILLM_TENSOR_CORES=0 switches the rungs on tensor cores off."""
    return os.environ.get("MINILLM_TENSOR_CORES") != "0"


def has_tensor_cores(device: torch.device | None = None) -> bool:
    """Whether this GPU, or the current one, has the instructions that the rungs use: sm_80 and later."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def no_tensor_linear(x: Tensor) -> str:
    """Why tensor cores cannot multiply these rows [num_rows, in_features], or nothing."""
    if x.dtype == torch.float32:
        return "tensor cores take bfloat16 and float16"
    if x.shape[1] % 8:
        return "rows begin at no multiple of 16 bytes"
    if x.shape[1] >= 1 << 24:
        return "rows of 2^24 numbers and more"
    return _no_tensor_cores(x)


def no_tensor_attention(q: Tensor) -> str:
    """Why attention on tensor cores cannot take these queries, or nothing."""
    if q.dtype == torch.float32:
        return "tensor cores take bfloat16 and float16"
    if q.shape[2] not in TENSOR_HEAD_DIMS:
        return f"head_dim {q.shape[2]} is not 64 or 128"
    return _no_tensor_cores(q)


def refuse_untested(rung: str | None, x: Tensor) -> None:
    """Refuse a rung that no GPU has judged, unless MINILLM_UNTESTED_RUNGS=1 asks for it.

    Raises:
        UsageError: `x` is on a GPU, and the rung is refused there or needs another GPU.
    """
    if rung not in UNTESTED_RUNGS or not x.is_cuda:
        return
    if torch.cuda.get_device_capability(x.device) != (9, 0):
        raise UsageError(f"rung {rung} needs a GPU of sm_90", "leave out rung")
    if os.environ.get("MINILLM_UNTESTED_RUNGS") != "1":
        raise UsageError(
            f"rung {rung} has run in the simulator only, no chip has judged it",
            "MINILLM_UNTESTED_RUNGS=1 runs it all the same",
        )


def aligned(x: Tensor) -> Tensor:
    """`x`, copied if it does not begin at a multiple of 16 bytes."""
    return x.clone() if x.data_ptr() % 16 else x


def _no_tensor_cores(x: Tensor) -> str:
    return "the GPU is older than sm_80" if x.is_cuda and not has_tensor_cores(x.device) else ""
