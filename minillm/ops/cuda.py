"""`Ops` on the kernels of csrc/cuda: a token has the same bits in any batch (contract C2).

Prefill and decode use different kernels, on tensor cores attention_v3 and decode_d3, else attention_v2 and
decode_d1. Both of a pair add the same numbers in the same order, so the choice affects only speed. Which pair
runs depends on the model alone (csrc/cuda/model/rungs.h). PyTorch runs the embedding lookup, which has no
arithmetic, and the log-probabilities, which are not part of a layer.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.config import KV_DTYPES, Activation, LayerSpec, ModelConfig
from minillm.errors import UnsupportedModel
from minillm.ops import kv_codes, sampling, shapes
from minillm.ops.contract import (
    AttentionMetadata,
    LayerCache,
    Matrix,
    PackedWeight,
    RopeTables,
    Routing,
    Weight,
    expert_rows,
    plain,
)
from minillm.ops.cuda_codes import CudaMatrices, data_of
from minillm.ops.cuda_fakes import register_fakes
from minillm.ops.cuda_model import CudaModel, can_run_fused
from minillm.ops.cuda_rungs import (
    ATTENTION_RUNGS,
    GRAPH_SIZES,
    HEAD_DIMS,
    INSTEAD,
    LINEAR_RUNGS,
    TENSOR_RUNGS,
    UNTESTED_RUNGS,
    aligned,
    has_tensor_cores,
    no_tensor_attention,
    no_tensor_linear,
    refuse_untested,
    wants_tensor_cores,
)
from minillm.ops.fused import FusedModel, ModelWeights
from minillm.toolchain.compiler import BuildFailed
from minillm.toolchain.cuda import cuda_library


class CudaOps(CudaMatrices):
    """`Ops` in CUDA. The methods are documented in `contract.py`.

    Raises:
        BuildFailed: the kernels cannot be compiled or loaded here.
    """

    name = "native"
    namespace = "minillm_cuda"
    kv_dtypes = KV_DTYPES
    view_keys = staticmethod(kv_codes.rows)

    def __init__(self) -> None:
        self.library = self._load()
        self._ops = getattr(torch.ops, self.namespace)
        self.head_dims = self._head_dims()
        self.tensor_cores = self._tensor_cores()

    @property
    def kernel_set(self) -> str:
        """The name of the library (digests of sources and compilers) and the rungs that it may run."""
        return f"{self.library}/{'v3+d3+l5' if self.tensor_cores else 'v2+d1+l2'}"

    def check_model(self, config: ModelConfig) -> None:
        """Check that these kernels can run the model.

        Raises:
            UnsupportedModel: there is no attention kernel for its head_dim.
        """
        if config.head_dim not in self.head_dims:
            raise UnsupportedModel(
                f"head_dim {config.head_dim} has no CUDA attention kernel ({_listed(self.head_dims)})",
                'use device cpu, or backend "reference"',
            )

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        rung: str | None = None,
        float_out: bool = False,
    ) -> Tensor:
        """`Ops.linear`; `rung` picks a kernel, "l1" to "l5", not the engine's own.

        "l4" and "l5" run on tensor cores. What they were not written for runs on "l2", with a warning that
        says why. With `float_out` the result is float32, which only "l5" can.
        """
        shapes.check_linear(x, weight, bias)
        if rung not in (None, *LINEAR_RUNGS):
            raise ValueError(f"linear: there is no rung {rung}, only {', '.join(LINEAR_RUNGS)}")
        rows = aligned(_rows(x))
        if isinstance(weight, PackedWeight):
            if rung is not None or float_out:
                raise ValueError("linear: a quantised matrix has one rung, and no float32 result")
            found: Tensor = self._call("linear_codes", rows, weight.data, bias, weight.shape[0])
            return found.view(*x.shape[:-1], weight.shape[0])
        matrix = aligned(plain(weight))
        chosen = self._rung("linear", rung, no_tensor_linear(rows))
        if float_out and chosen != "l5":
            raise ValueError(f"linear: only rung l5 has a float32 result, not {chosen}")
        result: Tensor = self._call("linear", rows, matrix, bias, chosen, float_out)
        return result.view(*x.shape[:-1], weight.shape[0])

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        shapes.check_norm("rms_norm", x, weight)
        result: Tensor = self._call("rms_norm", x.contiguous(), weight, eps, offset)
        return result

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        shapes.check_norm("layer_norm", x, weight)
        result: Tensor = self._call("layer_norm", x.contiguous(), weight, bias, eps)
        return result

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        shapes.check_norm("add_rms_norm", x, weight, residual)
        normed, total = self._call("add_rms_norm", x.contiguous(), residual.contiguous(), weight, eps)
        return normed, total

    def act_and_mul(self, gate_up: Tensor, activation: Activation = "silu") -> Tensor:
        shapes.check_act_and_mul(gate_up)
        result: Tensor = self._call("act_and_mul", _rows(gate_up), activation)
        return result.view(*gate_up.shape[:-1], gate_up.shape[-1] // 2)

    def act(self, x: Tensor, activation: Activation) -> Tensor:
        result: Tensor = self._call("act", _rows(x), activation)
        return result.view(x.shape)

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        result: Tensor = self._call("softcap", _rows(x), cap)
        return result.view(x.shape)

    def route(self, logits: Tensor, per_token: int, renormalize: bool) -> Routing:
        return Routing(*self._call("route", logits.contiguous(), per_token, renormalize))

    def experts(
        self, x: Tensor, routing: Routing, gate_up: Matrix, down: Matrix, activation: Activation
    ) -> Tensor:
        """`Ops.experts`: the same launches whatever experts are chosen, and no wait for the GPU.

        An expert that does not exist is refused where the tensors are on the CPU. On a GPU a look would be a
        wait: there the token's result is NaN, which the engine finds in the logits (`finite_rows`).
        """
        shapes.check_experts(x, routing, gate_up, down)
        if not x.is_cuda:
            shapes.check_chosen(
                routing.chosen, gate_up.weight.shape[0] // expert_rows(2 * down.weight.shape[1])
            )
        rows = aligned(x.contiguous()), routing.chosen.contiguous(), routing.weights.contiguous()
        matrices = data_of(gate_up.weight), gate_up.bias, data_of(down.weight), down.bias
        result: Tensor = self._call("experts", *rows, *matrices, activation, self.tensor_cores)
        return result

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
        """`Ops.paged_attention`; `rung` selects a kernel, v1 to v4 or d1 to d3, not the engine's own.

        "v3", "v4", "d2" and "d3" run on tensor cores and give a row the same bits. Where they cannot run,
        "v2" or "d1" runs instead, with a warning that says why. A GPU refuses "v4" (`refuse_untested`).
        """
        self._check_attention("paged_attention", q, LayerCache(k_cache, v_cache), meta)
        rungs = (*ATTENTION_RUNGS, *TENSOR_RUNGS, *UNTESTED_RUNGS)
        if rung not in (None, *rungs):
            raise ValueError(f"paged_attention: there is no rung {rung}, only {', '.join(rungs)}")
        refuse_untested(rung, q)
        rung = self._rung("paged_attention", rung, no_tensor_attention(q))
        # Only v1 needs the longest kv_len here, to allocate its score matrix. It forces a GPU
        # synchronisation.
        longest = int(meta.kv_len.max()) if rung == "v1" and len(meta.kv_len) else 0
        table, start, kv_len = meta.block_table, meta.query_start, meta.kv_len
        result: Tensor = self._call(
            "paged_attention", q, k_cache, v_cache, table, start, kv_len, scale, window or 0, rung, longest
        )
        return result

    def variant_attention(
        self,
        q: Tensor,
        cache: LayerCache,
        meta: AttentionMetadata,
        spec: LayerSpec,
        sinks: Tensor | None,
        rung: str | None = None,
    ) -> Tensor:
        """`Ops.variant_attention`; `rung` selects a kernel, v2 or d1, not the engine's own.

        The rungs on tensor cores know neither caps nor sinks: "v2" or "d1" runs instead, with a warning.
        """
        op = "variant_attention"
        self._check_attention(op, q, cache, meta)
        shapes.check_sinks(q, sinks)
        rung = self._rung(op, rung, "no softcap or sinks")
        if rung not in ("v2", "d1", "plain", "tensor"):
            raise ValueError(f"{op}: rung {rung} has no softcap and no sinks, only v2 and d1")
        places = meta.block_table, meta.query_start, meta.kv_len
        numbers = spec.scale, spec.window or 0, spec.softcap or 0.0
        result: Tensor = self._call(op, q, *cache, *places, *numbers, sinks, rung)
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
        finite: Tensor = self._call("finite_rows", logits.contiguous())
        return finite

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

    def can_bind(self, weights: ModelWeights) -> bool:
        return can_run_fused(weights)

    def bind(self, weights: ModelWeights, k_cache: list[Tensor], v_cache: list[Tensor]) -> FusedModel:
        model = CudaModel(self.namespace, self._launch, weights, k_cache, v_cache, self.tensor_cores)
        if model.device.type == "cuda" and os.environ.get("MINILLM_CUDA_GRAPHS") != "0":
            model.fill_up_to(GRAPH_SIZES)
        return model

    def _rung(self, op: str, asked: str | None, obstacle: str) -> str:
        """The rung asked for, the one that runs `INSTEAD` if there is an obstacle, or the engine's choice."""
        if asked is None:
            return "tensor" if self.tensor_cores else "plain"
        if asked in INSTEAD and obstacle:
            warnings.warn(f"{op}: rung {INSTEAD[asked]} instead of {asked}: {obstacle}", stacklevel=3)
            return INSTEAD[asked]
        return asked

    def _tensor_cores(self) -> bool:
        """Whether the engine's choice may be a rung on tensor cores."""
        return wants_tensor_cores() and torch.cuda.is_available() and has_tensor_cores()

    def _check_attention(self, op: str, q: Tensor, cache: LayerCache, meta: AttentionMetadata) -> None:
        shapes.check_attention(q, *cache, meta)
        if q.shape[2] not in self.head_dims:
            raise UnsupportedModel(f"{op}: head_dim {q.shape[2]} is not one of {_listed(self.head_dims)}")

    def _head_dims(self) -> tuple[int, ...]:
        """The head sizes that attention can run here. 256 takes 70 KB of shared memory; sm_75 has 64 KB."""
        is_old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        return HEAD_DIMS[:-1] if is_old else HEAD_DIMS

    def _load(self) -> str:
        return load_library().name

    def _call(self, op: str, *arguments: Any) -> Any:
        first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
        if not first.is_cuda:
            raise ValueError(f"{op}: tensors are on {first.device}, the kernels run on a GPU")
        return self._launch(getattr(self._ops, op).default, first.device, *arguments)

    def _launch(self, overload: Any, device: torch.device, *arguments: Any) -> Any:
        with torch.cuda.device(device):  # a launch goes to the current device, not the tensors' device
            return overload(*arguments, torch.cuda.current_stream().cuda_stream)


def _rows(x: Tensor) -> Tensor:
    """`x` [..., n] as [num_rows, n]."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


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
