"""The Transformer, from token ids to logits, with one function for each step of the paper.

    ids -> embedding -> [ + attention(norm(x)) -> + mlp(norm(x)) ] x layers -> norm -> logits

                 x ------------------------------+
                 | input_norm                    |
                 | qkv -> q, k, v                |      k and v of the new tokens go into the
                 | (qk norm), rope_and_cache ----|--->  paged cache; attention then reads all
                 | paged_attention <-------------|----  keys of the sequence from the cache
                 | o, attention_output_norm      |
                 +---------- add <---------------+
                 | mlp_norm, gate_up, act_and_mul, down, mlp_output_norm, add

Families differ in which of these parts a layer has, and in a few numbers; `LayerSpec` and `ModelConfig` say
so, and no family has code here. Every arithmetic step is a call of `ops`, so this file runs with PyTorch,
with C++ and in the simulator; sums and products of two numbers, which round the same everywhere, are
PyTorch's.
The tokens of all sequences lie in one dimension [num_tokens, ...]; `AttentionMetadata` tells which sequence
each belongs to.

The parts of a layer are in `blocks.py`. `model/weights.py` loads the tensors of a checkpoint into their rows.
Left out: dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from minillm.config import ModelConfig
from minillm.config.quantization import Form
from minillm.model.blocks import Experts, Layer, Norm, empty
from minillm.model.rope import layer_tables
from minillm.ops.contract import AttentionMetadata, LayerCache, Ops, PackedWeight, RopeTables, Weight
from minillm.ops.fused import ModelWeights, rounded_to
from minillm.ops.huge_pages import HugePages


class Decoder(nn.Module):
    """The whole model. `ropes` has each layer's tables; layers with the same rope share them."""

    ropes: tuple[RopeTables, ...]
    embed_tokens: Weight
    lm_head: Weight | None

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.embed_tokens = empty(config.vocab_size, config.hidden_size)
        learned = (config.max_position_embeddings, config.hidden_size)
        self.positions = empty(*learned) if config.learned_positions else None
        self._layers = [Layer(config, ops, spec) for spec in config.layers]
        self.layers = nn.ModuleList(self._layers)  # the same layers, registered as submodules
        self.norm = Norm(ops, config.hidden_size, config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else empty(config.vocab_size, config.hidden_size)

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
            decoder._fill_in(lambda weight: torch.empty_like(weight, device=device))
        else:
            pages = HugePages()
            decoder._fill_in(lambda weight: pages.empty(weight.shape, dtype))
        decoder.ropes = layer_tables(config, max_positions, device)
        for module in decoder.modules():
            if isinstance(module, Experts):
                module.clear_padding()
        return decoder

    def _fill_in(self, make: Callable[[Tensor], Tensor]) -> None:
        """Give every weight memory, without content; quantised matrices get theirs in `begin_quantized`."""
        quantized = {id(getattr(owner, name)) for owner, name, form in self._forms() if form is not None}
        self._apply(lambda weight: weight if id(weight) in quantized else make(weight))  # type: ignore[no-untyped-call]

    def named_matrices(self) -> Iterator[tuple[int | None, str, Tensor]]:
        """(layer, name, weight) of each matrix that is not packed; outside the layers the layer is None."""
        found: list[tuple[int | None, str, Weight | None]] = []
        for i, layer in enumerate(self._layers):
            found += [(i, name, linear.weight) for name, linear in layer.linears().items()]
        found += [(None, "embedding", self.embed_tokens), (None, "head", self.lm_head)]
        return ((layer, name, weight) for layer, name, weight in found if isinstance(weight, Tensor))

    def begin_quantized(
        self, dtype: torch.dtype, orders: Mapping[int, Tensor] | None = None
    ) -> dict[int, Weight]:
        """Replace every matrix that is to be quantised by one of zeros, for activations of `dtype`.

        Args:
            orders: of the inputs of some matrices, by their storage.

        Returns:
            The new matrices by the storage of the old ones, which have no memory. `weights.py` fills them.
        """
        begun = dict[int, Weight]()
        for owner, name, form in list(self._forms()):
            old = getattr(owner, name)
            if form is not None and isinstance(old, Tensor):
                shape = old.shape[0], old.shape[1]
                order = (orders or {}).get(storage_of(old))
                begun[storage_of(old)] = new = self.ops.begin_quantized(shape, form, dtype, order)
                delattr(owner, name)  # the name of a registered parameter can hold only a parameter
                setattr(owner, name, new)
        return begun

    def prepare(self) -> None:
        """Replace every matrix by the backend's packed form. Called once, after loading."""
        for owner, name in self._places():
            _prepare(self.ops, owner, name)

    def with_ops(self, ops: Ops) -> Decoder:
        """The same model with other ops. Tensors are shared, not copied.

        The exception: if `ops` does not accept these matrices (a replaced `linear` takes plain ones alone),
        the result has its own plain matrices.
        """
        tables = [table for rope in self.ropes for table in rope]
        shared = [*self.parameters(), *self.matrices, *tables, self.config]
        other = copy.deepcopy(self, {id(x): x for x in shared} | {id(self.ops): ops})
        if ops.plain_only or (self.ops.packs and not ops.packs):
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
            final_norm=self.norm.weights,
            ropes=self.ropes,
            positions=None if self.positions is None else self.positions.detach(),
        )

    @property
    def matrices(self) -> list[Weight]:
        """All matrices, packed or not, as they are stored."""
        return [getattr(owner, name) for owner, name in self._places()]

    def step_bytes(self) -> int:
        """Bytes of weights that a step of one token reads: all, but of the experts only its own.

        The embedding table counts only if it is also the head.
        """
        own_table = 0 if self.lm_head is None else self.embed_tokens.nbytes
        vectors = sum(p.nbytes for p in self.parameters() if p.dim() == 1)
        unused = sum(
            linear.matrix.weight.nbytes * (mlp.spec.count - mlp.spec.per_token) // mlp.spec.count
            for mlp in (layer.mlp for layer in self._layers)
            if isinstance(mlp, Experts)
            for linear in (mlp.gate_up, mlp.down)
        )
        return sum(matrix.nbytes for matrix in self.matrices) - own_table + vectors - unused

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
        x, residual = self.begin(ids, meta)
        for i in range(len(self._layers)):
            x, residual = self.run_layer(i, x, residual, LayerCache(k_cache[i], v_cache[i]), meta)
        return x

    def begin(self, ids: Tensor, meta: AttentionMetadata) -> tuple[Tensor, Tensor]:
        """The input of the first layer, and the residual beside it; both [num_tokens, hidden_size]."""
        residual = self._embed(ids, meta)
        return _before(self._layers[0].input_norm, residual), residual

    def run_layer(
        self, i: int, x: Tensor, residual: Tensor, cache: LayerCache, meta: AttentionMetadata
    ) -> tuple[Tensor, Tensor]:
        """Layer i: the input of the next one, or after the last the final hidden states; and the residual."""
        layer = self._layers[i]
        attended = layer.attention.forward(x, self.ropes[i], cache, meta)
        x, residual = self._add(layer.attention_output_norm, attended, residual, layer.mlp_norm)
        return self._add(layer.mlp_output_norm, layer.mlp.forward(x), residual, self._norm_after(i))

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits: hidden [num_rows, hidden_size] -> [num_rows, vocab_size]."""
        logits = self.ops.linear(hidden, self._head)
        if self.config.logits_divisor != 1:
            # Divided by a tensor: by a number, PyTorch on a GPU multiplies with the reciprocal.
            divisor = torch.tensor(self.config.logits_divisor, dtype=torch.float32, device=logits.device)
            logits = (logits.float() / divisor).to(logits.dtype)
        cap = self.config.logits_softcap
        return logits if cap is None else self.ops.softcap(logits, cap)

    def _embed(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        x = self.ops.embedding(ids, self.embed_tokens)
        if self.config.embedding_scale != 1:
            x = x * rounded_to(x.dtype, self.config.embedding_scale)
        return x if self.positions is None else x + self.positions[meta.positions]

    def _add(
        self, after: Norm | None, output: Tensor, residual: Tensor, before: Norm | None
    ) -> tuple[Tensor, Tensor]:
        """Add the output of attention or MLP to the residual: (input of the next part, new residual)."""
        if after is not None:
            output = after.forward(output)
        if self.config.residual_scale != 1:
            output = output * self.config.residual_scale
        if before is not None:
            return before.add(output, residual)
        total = output + residual
        return total, total

    @property
    def _head(self) -> Weight:
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def _norm_after(self, i: int) -> Norm | None:
        """The norm after layer i: that before the next layer, if it has one, or the final norm."""
        return self._layers[i + 1].input_norm if i + 1 < len(self._layers) else self.norm

    def _forms(self) -> Iterator[tuple[nn.Module, str, Form | None]]:
        """(owner, attribute name, form) of each matrix; None: it is not quantised."""
        for layer, spec in zip(self._layers, self.config.layers, strict=True):
            for name, linear in layer.linears().items():
                yield linear, "weight", (spec.quantization or {}).get(name)
        outside = self.config.quantization or {}
        yield self, "embed_tokens", outside.get("embedding")
        if self.lm_head is not None:
            yield self, "lm_head", outside.get("head")

    def _places(self) -> Iterator[tuple[nn.Module, str]]:
        """(owner, attribute name) of each matrix."""
        return ((owner, name) for owner, name, _ in self._forms())


def _before(norm: Norm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm.forward(x)


def storage_of(tensor: Tensor) -> int:
    """A number that a tensor has in common with its views, also on the meta device."""
    return int(tensor.untyped_storage()._cdata)


def _prepare(ops: Ops, owner: nn.Module, name: str) -> None:
    """Replace a matrix of `owner` by its packed form; the old one is freed before the next is packed."""
    weight = getattr(owner, name)
    if not isinstance(weight, Tensor):
        return
    prepared = ops.prepare_weight(weight)
    if isinstance(prepared, PackedWeight):
        delattr(owner, name)  # the name of a registered parameter can hold only a parameter
        setattr(owner, name, prepared)
