"""Which CUDA kernel runs: the sizes and rungs that there are, and what tensor cores cannot take."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.ops.contract import AttentionMetadata

HEAD_DIMS = (32, 64, 96, 128, 256)
# The kernels that `rung` can select: for attention, and for linear.
ATTENTION_RUNGS = ("v1", "v2", "d1")
TENSOR_RUNGS = {"v3": "v2", "d3": "d1"}  # attention on tensor cores; the rung that runs if they cannot
LINEAR_RUNGS = ("l2", "l5")
# The numbers of sequences for which a decode step is captured as a CUDA graph.
GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)


def default_rung(q: Tensor, meta: AttentionMetadata) -> str:
    """The rung of attention for these queries [num_tokens, num_heads, head_dim]."""
    return "d1" if q.shape[0] == meta.kv_len.shape[0] else "v2"


def no_mma(x: Tensor, weight: Tensor) -> str:
    """Why tensor cores cannot multiply these, or nothing."""
    if x.dtype == torch.float32:
        return "tensor cores take bfloat16 and float16"
    if x.shape[1] % 8 or x.data_ptr() % 16 or weight.data_ptr() % 16:
        return "rows begin at no multiple of 16 bytes"
    if x.shape[1] >= 1 << 24:
        return "rows of 2^24 numbers and more"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "the GPU is older than sm_80"
    return ""


def no_tensor_attention(q: Tensor) -> str:
    """Why attention on tensor cores cannot take these queries, or nothing."""
    if q.dtype == torch.float32:
        return "tensor cores take bfloat16 and float16"
    if q.shape[2] not in (64, 128):
        return f"head_dim {q.shape[2]} is not 64 or 128"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "the GPU is older than sm_80"
    return ""
