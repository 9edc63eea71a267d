"""`Ops` on the kernels of csrc/cuda: a token has the same bits in any batch (contract C2).

Prefill and decode use different kernels, attention_v2 and decode_d1. Both add the same numbers in the same
order, so the choice affects only speed. PyTorch runs the embedding lookup, which has no arithmetic, and the
log-probabilities, which are not part of a layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from minillm.config import ModelConfig
from minillm.errors import UnsupportedModel
from minillm.ops import sampling, shapes
from minillm.ops.contract import AttentionMetadata, LayerCache, RopeTables, Weight, plain
from minillm.toolchain.compiler import BuildFailed
from minillm.toolchain.cuda import cuda_library

HEAD_DIMS = (32, 64, 96, 128)
# The kernels that `rung` can select: for attention, and for linear.
ATTENTION_RUNGS = ("v1", "v2", "d1")
TENSOR_RUNGS = {"v3": "v2", "d2": "d1"}  # attention on tensor cores; the rung that runs if they cannot
LINEAR_RUNGS = ("tile", "mma")


class CudaOps:
    """`Ops` in CUDA. The methods are documented in `contract.py`.

    Raises:
        BuildFailed: the kernels cannot be compiled or loaded here.
    """

    name = "native"
    namespace = "minillm_cuda"
    packs = False

    def __init__(self) -> None:
        self.library = self._load()
        self._ops = getattr(torch.ops, self.namespace)

    @property
    def kernel_set(self) -> str:
        """The name of the library (digests of sources and compilers) and the two attention rungs."""
        return f"{self.library}/v2+d1"

    def check_model(self, config: ModelConfig) -> None:
        """Check that these kernels can run the model.

        Raises:
            UnsupportedModel: there is no attention kernel for its head_dim.
        """
        if config.head_dim not in HEAD_DIMS:
            raise UnsupportedModel(
                f"head_dim {config.head_dim} has no CUDA attention kernel ({', '.join(map(str, HEAD_DIMS))})",
                'use device cpu, or backend "reference"',
            )

    def prepare_weight(self, weight: Tensor) -> Weight:
        return weight

    def unpack_weight(self, weight: Weight) -> Tensor:
        return plain(weight)

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        shapes.check_embedding(ids, weight)
        return F.embedding(ids, plain(weight))

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        rung: str = "tile",
        float_out: bool = False,
    ) -> Tensor:
        """`Ops.linear`; `rung` picks a kernel: "tile", the engine's own, or "mma", on tensor cores.

        With `float_out` the result is float32, which only "mma" can. What "mma" was not written for runs on
        "tile", with a warning that says why.
        """
        shapes.check_linear(x, weight, bias)
        if rung not in LINEAR_RUNGS:
            raise ValueError(f"linear: there is no rung {rung}, only {' and '.join(LINEAR_RUNGS)}")
        rows, matrix = x.reshape(-1, x.shape[-1]).contiguous(), plain(weight)
        obstacle = _no_mma(rows, matrix) if rung == "mma" else 'rung "tile" rounds'
        if float_out and obstacle:
            raise ValueError(f"linear: no float32 result for {x.dtype} numbers: {obstacle}")
        if rung == "mma" and obstacle:
            warnings.warn(f"linear: rung tile instead of mma: {obstacle}", stacklevel=2)
        result: Tensor = (
            self._call("linear", rows, matrix, bias)
            if obstacle
            else self._call("linear_mma", rows, matrix, bias, float_out)
        )
        return result.view(*x.shape[:-1], weight.shape[0])

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        shapes.check_norm("rms_norm", x, weight)
        result: Tensor = self._call("rms_norm", x.contiguous(), weight, eps)
        return result

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        shapes.check_norm("add_rms_norm", x, weight, residual)
        normed, total = self._call("add_rms_norm", x.contiguous(), residual.contiguous(), weight, eps)
        return normed, total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        shapes.check_silu_mul(gate_up)
        result: Tensor = self._call("silu_mul", gate_up.reshape(-1, gate_up.shape[-1]).contiguous())
        return result.view(*gate_up.shape[:-1], gate_up.shape[-1] // 2)

    def rope_and_cache(
        self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTables, cache: LayerCache, meta: AttentionMetadata
    ) -> Tensor:
        shapes.check_rope(q, k, v, rope, cache, meta)
        places = meta.positions, meta.slot_mapping
        result: Tensor = self._call("rope_and_cache", q, k, v, *rope, *cache, *places)
        return result

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        rung: str | None = None,
    ) -> Tensor:
        """`Ops.paged_attention`; `rung` selects a kernel, v1, v2, v3, d1 or d2, not the default.

        "v3" and "d2" run on tensor cores and give a row the same bits. Where they cannot run, "v2" or "d1"
        runs instead, with a warning that says why.
        """
        shapes.check_attention(q, k_cache, v_cache, meta)
        if q.shape[2] not in HEAD_DIMS:
            raise UnsupportedModel(f"paged_attention: head_dim {q.shape[2]} is not 32, 64, 96 or 128")
        if rung is None:
            rung = "d1" if q.shape[0] == meta.kv_len.shape[0] else "v2"
        if rung in TENSOR_RUNGS and (obstacle := _no_tensor_attention(q)):
            warnings.warn(
                f"paged_attention: rung {TENSOR_RUNGS[rung]} instead of {rung}: {obstacle}", stacklevel=2
            )
            rung = TENSOR_RUNGS[rung]
        # Only v1 needs the longest kv_len here, to allocate its score matrix. It forces a GPU
        # synchronisation.
        longest = int(meta.kv_len.max()) if rung == "v1" and len(meta.kv_len) else 0
        table, start, kv_len = meta.block_table, meta.query_start, meta.kv_len
        result: Tensor = self._call(
            "paged_attention", q, k_cache, v_cache, table, start, kv_len, scale, window or 0, rung, longest
        )
        return result

    def copy_blocks(self, caches: list[Tensor], source: Tensor, destination: Tensor) -> None:
        shapes.check_copy(caches, source, destination)
        if caches:
            self._call("copy_blocks", caches, source, destination)

    def sample(self, logits: Tensor, batch: sampling.SamplingBatch) -> Tensor:
        columns = batch.tensors(logits.device)
        tokens: Tensor = self._call("sample", logits.contiguous(), *columns, batch.num_token_ids)
        return tokens

    def token_logprobs(
        self, logits: Tensor, token_ids: Tensor, tops: Sequence[int]
    ) -> list[dict[int, float]]:
        return sampling.token_logprobs(logits, token_ids, tops)

    def finite_rows(self, logits: Tensor) -> Tensor:
        return sampling.finite_rows(logits)

    def verify_coupled(
        self, sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
    ) -> tuple[Tensor, Tensor]:
        shapes.check_verify_coupled(sampled, drafted, parents, node_start)
        columns = (t.contiguous() for t in (sampled, drafted, parents, node_start))
        tokens, nodes = self._call("verify_coupled", *columns)
        return tokens, nodes

    def verify_draft(
        self, draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        shapes.check_verify_draft(draft, draft_probs, target_probs, uniforms)
        q = None if draft_probs is None else draft_probs.contiguous()
        rest = target_probs.contiguous(), uniforms.contiguous()
        tokens, accepted = self._call("verify_draft", draft.contiguous(), q, *rest)
        return tokens, accepted

    def _load(self) -> str:
        return load_library().name

    def _call(self, op: str, *arguments: Any) -> Any:
        first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
        if not first.is_cuda:
            raise ValueError(f"{op}: tensors are on {first.device}, the kernels run on a GPU")
        with torch.cuda.device(first.device):  # a launch goes to the current device, not the tensors' device
            return getattr(self._ops, op).default(*arguments, torch.cuda.current_stream().cuda_stream)


def _no_mma(x: Tensor, weight: Tensor) -> str:
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


def _no_tensor_attention(q: Tensor) -> str:
    """Why attention on tensor cores cannot take these queries, or nothing."""
    if q.dtype == torch.float32:
        return "tensor cores take bfloat16 and float16"
    if q.shape[2] not in (64, 128):
        return f"head_dim {q.shape[2]} is not 64 or 128"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "the GPU is older than sm_80"
    return ""


@cache
def load_library() -> Path:
    """Compile the kernels for this machine's GPU on first use, and register them.

    Raises:
        BuildFailed: they cannot be compiled or loaded here.
    """
    path = cuda_library().build()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise BuildFailed(f"{path} cannot be loaded: {error}; delete it to have it compiled again") from None
    register_fakes(CudaOps.namespace)
    return path


def register_fakes(namespace: str) -> None:
    """Register fake implementations (result shapes only) for tracing and for `opcheck`."""
    for name, fake in _FAKES.items():
        register_fake(f"{namespace}::{name}")(fake)


_FAKES: dict[str, Callable[..., Any]] = {
    "rms_norm": lambda x, *others: torch.empty_like(x),
    "add_rms_norm": lambda x, *others: (torch.empty_like(x), torch.empty_like(x)),
    "silu_mul": lambda gate_up, stream: gate_up.new_empty([gate_up.shape[0], gate_up.shape[1] // 2]),
    "linear": lambda x, weight, bias, stream: x.new_empty([x.shape[0], weight.shape[0]]),
    "linear_mma": lambda x, weight, bias, float_out, stream: x.new_empty(
        [x.shape[0], weight.shape[0]], dtype=torch.float32 if float_out else x.dtype
    ),
    "rope_and_cache": lambda q, *others: q.new_empty(q.shape),
    "paged_attention": lambda q, *others: q.new_empty(q.shape),
    "sample": lambda logits, keys, *others: keys.new_empty([logits.shape[0]]),
    "copy_blocks": lambda caches, source, destination, stream: None,
    "verify_coupled": lambda sampled, *others: (torch.empty_like(sampled), torch.empty_like(sampled)),
    "verify_draft": lambda draft, *others: (
        draft.new_empty([draft.shape[0], draft.shape[1] + 1]),
        draft.new_empty([draft.shape[0]]),
    ),
}
