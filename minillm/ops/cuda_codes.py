"""How the CUDA kernels have their matrices: as they were loaded, or quantised.

A quantised matrix is made on the host and kept where the kernels read it. The layout is that of csrc/cpu
(csrc/shared/codes_layout.h):

    host    begin_codes_ --> header | order | blocks of zeros -- one copy --> device

    rows 20 to 40    device  | block 0 | block 1 | block 2 | block 3 |      16 outputs each
                                       +---------+---------+
                                       copied to the host, some rows written, and copied back

A tensor of the checkpoint may end in the middle of a block, so a block is written on top of what it has.
Memory on the host is one matrix while it is begun, and one piece of it while it is filled.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.config.quantization import Form
from minillm.errors import BackendError
from minillm.ops import shapes
from minillm.ops.contract import PackedWeight, Weight, plain
from minillm.ops.cuda_rungs import aligned
from minillm.ops.fused import FusedOps
from minillm.ops.quantized import QuantizedMatrix

_HEADER = 64  # bytes
_OUTPUTS = 16  # of a block
_INT8_GROUPS = (8, 16, 32, 64, 128)  # csrc/cuda/linear/linear_q1.cu rounds a group in one tile


class CudaMatrices(FusedOps):
    """The part of `CudaOps` that makes matrices and reads their rows."""

    packs = True  # quantised matrices; others stay as they are
    plain_only = False
    _ops: Any  # a namespace of torch's ops

    def prepare_weight(self, weight: Tensor) -> Weight:
        return aligned(weight)

    def unpack_weight(self, weight: Weight) -> Tensor:
        if isinstance(weight, PackedWeight):
            return self.embedding(torch.arange(weight.out_features, device=weight.device), weight)
        return plain(weight)

    def begin_quantized(
        self, shape: tuple[int, int], form: Form, dtype: torch.dtype, order: Tensor | None = None
    ) -> Weight:
        if form.int8_x and form.group not in _INT8_GROUPS and shape[1] > form.group:
            groups = ", ".join(map(str, _INT8_GROUPS))
            raise BackendError(
                f"activations in int8 in groups of {form.group}", f"on a GPU groups have {groups} inputs"
            )
        data = self._begin_codes(shape, form, order).to(self._device())
        return PackedWeight(data, *shape, dtype, form)

    def put_quantized(self, weight: Weight, first: int, rows: QuantizedMatrix) -> None:
        if not isinstance(weight, PackedWeight):
            return
        from_block, to_block = first // _OUTPUTS, -(-(first + rows.shape[0]) // _OUTPUTS)
        count, all_blocks = to_block - from_block, -(-weight.out_features // _OUTPUTS)
        if not count:
            return
        piece = self._begin_codes((count * _OUTPUTS, weight.in_features), rows.form)
        block = (len(piece) - _HEADER) // count
        start = len(weight.data) - (all_blocks - from_block) * block
        there = weight.data[start : start + count * block]
        piece[_HEADER:] = there
        self._ops.put_codes_(piece, first - from_block * _OUTPUTS, rows.codes, rows.scales, rows.minima)
        there.copy_(piece[_HEADER:])

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        shapes.check_embedding(ids, weight)
        if isinstance(weight, PackedWeight):
            what = ids.contiguous(), weight.data, *weight.shape, weight.dtype
            rows: Tensor = self._call("embedding_codes", *what)
            return rows
        return F.embedding(ids, plain(weight))

    def _begin_codes(self, shape: tuple[int, int], form: Form, order: Tensor | None = None) -> Tensor:
        """The bytes of a matrix [out, in] of zeros, on the host."""
        what = (*shape, form.codes, form.group or shape[1], form.wide, form.minimum)
        data = torch.empty(self._ops.codes_bytes(*what, order is not None), dtype=torch.uint8)
        self._ops.begin_codes_(data, *what, order, form.int8_x)
        return data

    def _device(self) -> torch.device:
        """Where the kernels read matrices."""
        return torch.device("cuda", torch.cuda.current_device())

    @abstractmethod
    def _call(self, op: str, *arguments: Any) -> Any:
        """Run an op of the kernels' library."""


def data_of(weight: Weight) -> Tensor:
    """What the op `experts` takes: a matrix that wide loads can read, or the bytes of a quantised one."""
    return weight.data if isinstance(weight, PackedWeight) else aligned(plain(weight))
