"""`Ops` on the kernels of csrc/cpu: as fast as memory allows, with the same bits in any batch (contract C2).

Matrices are stored packed (layout: csrc/cpu/kernels.h) instead of [out, in] as in the checkpoint. Most are
packed in place, so weights exist once. A plain matrix is accepted too; it is packed for that one call.

A float32 matrix may be stored as bfloat16. Most checkpoints were saved in bfloat16, and a bfloat16 number
is the upper half of the float32 with the same value:

    float32     s eeeeeeee mmmmmmm 0000000000000000    if the lower half of every number is zero,
    bfloat16    s eeeeeeee mmmmmmm                     half the bytes hold the same numbers

The kernels widen the numbers in registers and multiply in float32, in the same order. So results are the
same, with half the memory and half the bytes read by a decode step. A matrix stays float32 if one of its
numbers needs more bits, or if its number of inputs is odd: bfloat16 is stored in pairs, the padding of the
last pair would be multiplied and added too, and that turns a sum of -0.0 into +0.0.

Wrong shapes are reported before an op is called (`ops/shapes.py`). The ops themselves refuse every access
outside a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.config import Activation, LayerSpec
from minillm.config.quantization import Form
from minillm.ops import kv_codes, shapes
from minillm.ops.bound_model import BoundModel
from minillm.ops.contract import (
    AttentionMetadata,
    LayerCache,
    Matrix,
    PackedWeight,
    RopeTables,
    Routing,
    Weight,
    expert_rows,
)
from minillm.ops.fused import FusedModel, FusedOps, ModelWeights
from minillm.ops.huge_pages import HugePages
from minillm.ops.quantized import QuantizedMatrix
from minillm.ops.registered import current_isa, load_native, loaded_library, packed_shape
from minillm.ops.sampling import SamplingBatch

_OPS = (
    "act",
    "act_and_mul",
    "add_rms_norm",
    "begin_codes_",
    "codes_bytes",
    "copy_blocks",
    "embedding",
    "experts",
    "finite_rows",
    "layer_norm",
    "linear",
    "pack",
    "pack_",
    "paged_attention",
    "put_codes_",
    "rms_norm",
    "rope_and_cache",
    "route",
    "sample",
    "softcap",
    "token_logprobs",
    "variant_attention",
    "verify_coupled",
    "verify_draft",
)
_LOOKED_AT = 1 << 20  # numbers checked at a time: most matrices that need float32 fail in the first part


class CpuOps(FusedOps):
    """`Ops` in C++ for CPU tensors: backend "native" on a CPU. The methods are documented in `contract.py`.

    `CudaOps` is the counterpart on a GPU.
    """

    name = "native"
    kv_dtypes = ("int8",)
    view_keys = staticmethod(kv_codes.columns)
    packs = True
    plain_only = False

    def __init__(self) -> None:
        load_native()
        # The overloads are looked up once: a lookup by name costs as much as a small kernel.
        self._ops = SimpleNamespace(**{name: getattr(torch.ops.minillm, name).default for name in _OPS})
        self._pages = HugePages()  # of quantised matrices

    @property
    def kernel_set(self) -> str:
        """The name of the library (digests of sources and compiler) and the instruction set."""
        return f"{loaded_library()}/{current_isa()}"

    def prepare_weight(self, weight: Tensor) -> Weight:
        weight, dtype = weight.detach(), weight.dtype
        if fits_bfloat16(weight):
            weight = _upper_halves(weight)
        shape = packed_shape(weight.shape[0], weight.shape[1], weight.dtype)
        if math.prod(shape) == weight.numel() and weight.is_contiguous():  # no padding: pack in place
            self._ops.pack_(weight)
            return PackedWeight(weight.view(shape), weight.shape[0], weight.shape[1], dtype)
        return self._packed(weight, dtype)

    def unpack_weight(self, weight: Weight) -> Tensor:
        if isinstance(weight, QuantizedMatrix):
            return weight.dequantize().to(weight.dtype)
        if not isinstance(weight, PackedWeight):
            return weight
        if weight.form is not None:
            return self.embedding(torch.arange(weight.out_features), weight)
        out, size = weight.shape
        matrix = weight.data.transpose(1, 2).flatten(2).flatten(0, 1)[:out, :size].contiguous()
        return _with_lower_halves(matrix) if weight.narrow else matrix

    def begin_quantized(
        self, shape: tuple[int, int], form: Form, dtype: torch.dtype, order: Tensor | None = None
    ) -> Weight:
        what = (*shape, form.codes, form.group or shape[1], form.wide, form.minimum)
        data = self._pages.empty((self._ops.codes_bytes(*what, order is not None),), torch.uint8)
        self._ops.begin_codes_(data, *what, order, form.int8_x)
        return PackedWeight(data, *shape, dtype, form)

    def put_quantized(self, weight: Weight, first: int, rows: QuantizedMatrix) -> None:
        if isinstance(weight, PackedWeight):
            self._ops.put_codes_(weight.data, first, rows.codes, rows.scales, rows.minima)

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        shapes.check_embedding(ids, weight)
        if isinstance(weight, QuantizedMatrix):
            return weight.dequantize(ids).to(weight.dtype)
        if not isinstance(weight, PackedWeight):
            return F.embedding(ids, weight)  # a lookup has no arithmetic, so the matrix need not be packed
        result: Tensor = self._ops.embedding(ids, weight.data, *weight.shape, weight.dtype)
        return result

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        shapes.check_linear(x, weight, bias)
        packed = self._pack_if_plain(weight)
        result: Tensor = self._ops.linear(x.contiguous(), packed.data, bias, packed.shape[0])
        return result

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        shapes.check_norm("rms_norm", x, weight)
        result: Tensor = self._ops.rms_norm(x.contiguous(), weight, eps, offset)
        return result

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        shapes.check_norm("layer_norm", x, weight)
        result: Tensor = self._ops.layer_norm(x.contiguous(), weight, bias, eps)
        return result

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        shapes.check_norm("add_rms_norm", x, weight, residual)
        normed, total = self._ops.add_rms_norm(x.contiguous(), residual.contiguous(), weight, eps)
        return normed, total

    def act_and_mul(self, gate_up: Tensor, activation: Activation = "silu") -> Tensor:
        shapes.check_act_and_mul(gate_up)
        result: Tensor = self._ops.act_and_mul(gate_up.contiguous(), activation)
        return result

    def act(self, x: Tensor, activation: Activation) -> Tensor:
        result: Tensor = self._ops.act(x.contiguous(), activation)
        return result

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        result: Tensor = self._ops.softcap(x.contiguous(), cap)
        return result

    def route(self, logits: Tensor, per_token: int, renormalize: bool) -> Routing:
        return Routing(*self._ops.route(logits.contiguous(), per_token, renormalize))

    def experts(
        self, x: Tensor, routing: Routing, gate_up: Matrix, down: Matrix, activation: Activation
    ) -> Tensor:
        shapes.check_experts(x, routing, gate_up, down)
        count = down.weight.shape[0] // expert_rows(x.shape[1])
        first, second = self._pack_if_plain(gate_up.weight), self._pack_if_plain(down.weight)
        matrices = first.data, gate_up.bias, second.data, down.bias
        sizes = count, second.shape[1]
        result: Tensor = self._ops.experts(x.contiguous(), *routing, *matrices, *sizes, activation)
        return result

    def rope_and_cache(
        self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTables, cache: LayerCache, meta: AttentionMetadata
    ) -> Tensor:
        shapes.check_rope(q, k, v, rope, cache, meta)
        places = meta.positions, meta.slot_mapping
        result: Tensor = self._ops.rope_and_cache(q, k, v, *rope, *cache, *places)
        return result

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        shapes.check_attention(q, k_cache, v_cache, meta)
        result: Tensor = self._ops.paged_attention(
            q, k_cache, v_cache, meta.block_table, meta.query_start, meta.kv_len, scale, window or 0
        )
        return result

    def variant_attention(
        self, q: Tensor, cache: LayerCache, meta: AttentionMetadata, spec: LayerSpec, sinks: Tensor | None
    ) -> Tensor:
        shapes.check_attention(q, *cache, meta)
        shapes.check_sinks(q, sinks)
        sequences = meta.block_table, meta.query_start, meta.kv_len
        scores = spec.scale, spec.window or 0, spec.softcap or 0.0
        result: Tensor = self._ops.variant_attention(q, *cache, *sequences, *scores, sinks)
        return result

    def copy_blocks(self, caches: list[Tensor], source: Tensor, destination: Tensor) -> None:
        shapes.check_copy(caches, source, destination)
        self._ops.copy_blocks(caches, source, destination)

    def can_bind(self, weights: ModelWeights) -> bool:
        return weights.is_packed

    def bind(self, weights: ModelWeights, k_cache: list[Tensor], v_cache: list[Tensor]) -> FusedModel:
        return BoundModel("minillm", weights, k_cache, v_cache)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        tokens: Tensor = self._ops.sample(logits.contiguous(), *batch.tensors(), batch.num_token_ids)
        return tokens

    def token_logprobs(
        self, logits: Tensor, token_ids: Tensor, tops: Sequence[int]
    ) -> list[dict[int, float]]:
        most = min(max(tops, default=0), logits.shape[-1])
        own, best, best_ids = self._ops.token_logprobs(logits.contiguous(), token_ids, most)
        rows = zip(token_ids.tolist(), own.tolist(), best_ids.tolist(), best.tolist(), tops, strict=True)
        return [
            {token_id: value} | dict(zip(ids[:top], values[:top], strict=True))
            for token_id, value, ids, values, top in rows
        ]

    def finite_rows(self, logits: Tensor) -> Tensor:
        finite: Tensor = self._ops.finite_rows(logits.contiguous())
        return finite

    def verify_coupled(
        self, sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
    ) -> tuple[Tensor, Tensor]:
        shapes.check_verify_coupled(sampled, drafted, parents, node_start)
        columns = (t.contiguous() for t in (sampled, drafted, parents, node_start))
        tokens, nodes = self._ops.verify_coupled(*columns)
        return tokens, nodes

    def verify_draft(
        self, draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        shapes.check_verify_draft(draft, draft_probs, target_probs, uniforms)
        q = None if draft_probs is None else draft_probs.contiguous()
        rest = target_probs.contiguous(), uniforms.contiguous()
        tokens, accepted = self._ops.verify_draft(draft.contiguous(), q, *rest)
        return tokens, accepted

    def _pack_if_plain(self, weight: Weight) -> PackedWeight:
        if isinstance(weight, PackedWeight):
            return weight
        if isinstance(weight, QuantizedMatrix):
            packed = self.begin_quantized(weight.shape, weight.form, weight.dtype, weight.order)
            self.put_quantized(packed, 0, weight)
            return cast(PackedWeight, packed)
        return self._packed(weight, weight.dtype)

    def _packed(self, weight: Tensor, dtype: torch.dtype) -> PackedWeight:
        packed = self._ops.pack(weight.detach().contiguous())
        return PackedWeight(packed, weight.shape[0], weight.shape[1], dtype)


def fits_bfloat16(weight: Tensor) -> bool:
    """Whether a float32 matrix [out, in] can be stored as bfloat16 without changing a bit of any result.

    The bits are compared, not the values: so NaN and -0.0 are preserved too.
    """
    if weight.dtype != torch.float32 or weight.shape[1] % 2 or not weight.is_contiguous():
        return False
    lower = weight.view(torch.int16).view(-1, 2)[:, 0]
    return not any(bool(part.any()) for part in lower.split(_LOOKED_AT))


def _upper_halves(weight: Tensor) -> Tensor:
    return weight.view(torch.int16)[:, 1::2].contiguous().view(torch.bfloat16)


def _with_lower_halves(upper: Tensor) -> Tensor:
    halves = torch.zeros(*upper.shape, 2, dtype=torch.int16)
    halves[..., 1] = upper.view(torch.int16)
    return halves.view(torch.float32).squeeze(-1)
