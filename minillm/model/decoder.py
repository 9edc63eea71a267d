"""The Transformer, from token ids to logits, with one function for each step of the paper.

    ids -> embedding -> [ + attention(norm(x)) -> + mlp(norm(x)) ] x layers -> norm -> logits

                 x ------------------------------+
                 | rms_norm                      |
                 | qkv_proj -> q, k, v           |      k and v of the new tokens go into the
                 | (qk norm), rope_and_cache ----|--->  paged cache; attention then reads all
                 | paged_attention <-------------|----  keys of the sequence from the cache
                 | o_proj                        |
                 +---------- add <---------------+
                 | rms_norm, gate_up_proj, silu_mul, down_proj, add

Every arithmetic step is a call of `ops`, so this file runs with PyTorch, with C++ and in the simulator. The
tokens of all sequences lie in one dimension [num_tokens, ...]; `AttentionMetadata` tells which sequence
each belongs to.

Projections of the same input are stored fused, their rows one after another: q, k and v as `qkv_proj`, gate
and up as `gate_up_proj`. So the input is read once instead of two or three times. `model/weights.py` loads
the tensors of a checkpoint into their rows.

Papers: Vaswani et al. 1706.03762; Zhang & Sennrich 1910.07467 (RMSNorm); Shazeer 2002.05202
(SwiGLU); Ainslie et al. 2305.13245 (grouped-query attention). Left out: dropout, mixture of experts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minillm.config import LayerSpec, ModelConfig
from minillm.errors import UnsupportedModel
from minillm.model.rope import rope_tables
from minillm.ops.contract import (
    AttentionMetadata,
    LayerCache,
    LayerWeights,
    Matrix,
    ModelWeights,
    Ops,
    PackedWeight,
    RopeTables,
    Weight,
)
from minillm.ops.huge_pages import HugePages


def _empty(*shape: int) -> nn.Parameter:
    """An uninitialised weight; the loader or the trainer fills it."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class Linear(nn.Module):
    """x [num_tokens, in] -> [num_tokens, out]."""

    weight: Weight

    def __init__(self, ops: Ops, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.ops = ops
        self.weight = _empty(out_features, in_features)
        self.bias = _empty(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)

    @property
    def matrix(self) -> Matrix:
        """The weight and the bias."""
        weight, bias = self.weight, self.bias
        return Matrix(
            weight.detach() if isinstance(weight, Tensor) else weight, None if bias is None else bias.detach()
        )


class Norm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, ops: Ops, size: int, eps: float) -> None:
        super().__init__()
        self.ops, self.eps = ops, eps
        self.weight = _empty(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual) in one op, which reads both inputs once."""
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention over the paged cache."""

    def __init__(self, config: ModelConfig, ops: Ops, spec: LayerSpec) -> None:
        super().__init__()
        self.ops, self.config, self.spec = ops, config, spec
        qkv_size = config.q_size + 2 * config.kv_size
        self.qkv_proj = Linear(ops, config.hidden_size, qkv_size, config.qkv_bias)
        self.o_proj = Linear(ops, config.q_size, config.hidden_size, config.o_bias)
        if config.qk_norm:
            self.q_norm = Norm(ops, config.head_dim, config.rms_norm_eps)
            self.k_norm = Norm(ops, config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: RopeTables, cache: LayerCache, meta: AttentionMetadata) -> Tensor:
        c = self.config
        q, k, v = torch.split(self.qkv_proj.forward(x), [c.q_size, c.kv_size, c.kv_size], dim=-1)
        q = q.view(-1, c.num_attention_heads, c.head_dim)
        k = k.view(-1, c.num_key_value_heads, c.head_dim)
        v = v.view(-1, c.num_key_value_heads, c.head_dim)
        if c.qk_norm:
            q, k = self.q_norm.forward(q), self.k_norm.forward(k)
        q = self.ops.rope_and_cache(q, k, v, rope, cache, meta)
        out = self.ops.paged_attention(q, *cache, meta, self.spec.scale, self.spec.window)
        return self.o_proj.forward(out.flatten(1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.gate_up_proj = Linear(ops, config.hidden_size, 2 * config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(ops, config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj.forward(self.ops.silu_mul(self.gate_up_proj.forward(x)))


class Layer(nn.Module):
    """Attention, then MLP. Each gets the normed `residual`, and its result is added to `residual`."""

    def __init__(self, config: ModelConfig, ops: Ops, spec: LayerSpec) -> None:
        super().__init__()
        self.input_layernorm = Norm(ops, config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, ops, spec)
        self.post_attention_layernorm = Norm(ops, config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, ops)

    def weights(self) -> LayerWeights:
        """The layer's weights by name; no tensor is copied."""
        attention, mlp = self.self_attn, self.mlp
        has_norm = attention.config.qk_norm
        return LayerWeights(
            input_norm=self.input_layernorm.weight.detach(),
            qkv=attention.qkv_proj.matrix,
            q_norm=attention.q_norm.weight.detach() if has_norm else None,
            k_norm=attention.k_norm.weight.detach() if has_norm else None,
            o=attention.o_proj.matrix,
            post_attention_norm=self.post_attention_layernorm.weight.detach(),
            gate_up=mlp.gate_up_proj.matrix,
            down=mlp.down_proj.matrix,
        )


class Decoder(nn.Module):
    """The whole model. Parameters have Hugging Face's names, except the fused ones."""

    rope: RopeTables
    embed_tokens: Weight
    lm_head: Weight | None

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        for i, spec in enumerate(config.layers):
            _require_runnable(i, spec)
        self.config, self.ops = config, ops
        self.embed_tokens = _empty(config.vocab_size, config.hidden_size)
        self._layers = [Layer(config, ops, spec) for spec in config.layers]
        self.layers = nn.ModuleList(self._layers)  # the same layers, registered as submodules
        self.norm = Norm(ops, config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else _empty(config.vocab_size, config.hidden_size)

    @classmethod
    def build(
        cls, config: ModelConfig, ops: Ops, dtype: torch.dtype, device: torch.device, max_positions: int
    ) -> Decoder:
        """A decoder with uninitialised weights in `dtype` on `device`.

        It is first built without memory, on the meta device, so that no weight is ever allocated in another
        dtype.
        """
        with torch.device("meta"):
            decoder = cls(config, ops)
        decoder.to(dtype)
        if device.type != "cpu" or dtype == torch.float32:
            # float32 matrices are usually repacked later (ops/cpu.py): huge pages would be wasted.
            decoder.to_empty(device=device)
        else:
            pages = HugePages()
            decoder._apply(lambda weight: pages.empty(weight.shape, dtype))  # type: ignore[no-untyped-call]
        tables = rope_tables(config.rope, config.head_dim, max_positions)
        decoder.rope = RopeTables(*(table.to(device) for table in tables))
        return decoder

    def prepare(self) -> None:
        """Replace every matrix by the backend's packed form. Called once, after loading."""
        for owner, name in self._places():
            _prepare(self.ops, owner, name)

    def with_ops(self, ops: Ops) -> Decoder:
        """The same model with other ops. Tensors are shared, not copied.

        The exception: if `ops` does not accept packed matrices (a replaced `linear` does not), the result
        has its own unpacked matrices.
        """
        shared = [*self.parameters(), *self.matrices, *self.rope, self.config]
        other = copy.deepcopy(self, {id(x): x for x in shared} | {id(self.ops): ops})
        if not ops.packs:
            for owner, name in other._places():
                setattr(owner, name, self.ops.unpack_weight(getattr(owner, name)))
        return other

    def weights(self) -> ModelWeights:
        """All weights by name, for a backend that runs the whole model; no tensor is copied."""
        return ModelWeights(
            config=self.config,
            layers=tuple(layer.weights() for layer in self._layers),
            embedding=self.embed_tokens,
            head=self._head,
            final_norm=self.norm.weight.detach(),
            rope=self.rope,
        )

    @property
    def matrices(self) -> list[Weight]:
        """All matrices, packed or not, as they are stored."""
        return [getattr(owner, name) for owner, name in self._places()]

    def step_bytes(self) -> int:
        """Bytes of weights that every step reads: all but the embedding table, unless it is also the head."""
        own_table = 0 if self.lm_head is None else self.embed_tokens.nbytes
        vectors = sum(p.nbytes for p in self.parameters() if p.dim() == 1)
        return sum(matrix.nbytes for matrix in self.matrices) - own_table + vectors

    def forward(
        self, ids: Tensor, k_cache: list[Tensor], v_cache: list[Tensor], meta: AttentionMetadata
    ) -> Tensor:
        """Run the new tokens through all layers and write their keys and values to the cache.

        Args:
            ids: int64 [num_tokens].
            k_cache, v_cache: per layer [num_blocks, block_size, num_kv_heads, head_dim].
            meta: the sequence, position and slot of each row.

        Returns:
            The final hidden states [num_tokens, hidden_size]; see `logits`.
        """
        residual = self.ops.embedding(ids, self.embed_tokens)
        x = self._layers[0].input_layernorm.forward(residual)
        for i, layer in enumerate(self._layers):
            attended = layer.self_attn.forward(x, self.rope, LayerCache(k_cache[i], v_cache[i]), meta)
            x, residual = layer.post_attention_layernorm.add(attended, residual)
            x, residual = self._norm_after(i).add(layer.mlp.forward(x), residual)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits: hidden [num_rows, hidden_size] -> [num_rows, vocab_size]."""
        return self.ops.linear(hidden, self._head)

    @property
    def _head(self) -> Weight:
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def _norm_after(self, i: int) -> Norm:
        """The norm after layer i: the first norm of the next layer, or the final norm."""
        return self._layers[i + 1].input_layernorm if i + 1 < len(self._layers) else self.norm

    def _places(self) -> Iterator[tuple[nn.Module, str]]:
        """(owner, attribute name) of each matrix."""
        for layer in self._layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linear in (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj):
                yield linear, "weight"
        yield self, "embed_tokens"
        if self.lm_head is not None:
            yield self, "lm_head"


def _require_runnable(layer: int, spec: LayerSpec) -> None:
    """Refuse a layer that a config can describe but this decoder does not support."""
    for what, value, only in (
        ("rope", spec.rope, True),
        ("norm", spec.norm, "pre"),
        ("quantization", spec.quantization, None),
    ):
        if value != only:
            raise UnsupportedModel(f"layer {layer}: {what}={value!r} is not supported", f"only {only!r} is")


def _prepare(ops: Ops, owner: nn.Module, name: str) -> None:
    """Replace a matrix of `owner` by its packed form; the old one is freed before the next is packed."""
    weight = getattr(owner, name)
    if not isinstance(weight, Tensor):
        return
    prepared = ops.prepare_weight(weight)
    if isinstance(prepared, PackedWeight):
        delattr(owner, name)  # the name of a registered parameter can hold only a parameter
        setattr(owner, name, prepared)
