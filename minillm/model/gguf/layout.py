"""Which tensor of a GGUF file becomes which tensor of the folder, and how it is rewritten.

    token_embd.weight        model.embed_tokens.weight
    blk.0.attn_q.weight      model.layers.0.self_attn.q_proj.weight
    ...

llama.cpp rotates neighbouring numbers of a head, Hugging Face the first half of a head against its second
half. For the architecture "llama" conversion to GGUF therefore reordered the rows of q and k in each head:

    folder  row 0  1  2  3 | 4  5  6  7        file    row 0  4  1  5  2  6  3  7

and `Rewrite.heads` says in how many heads this has to be undone. Qwen's files keep the folder's order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from minillm.config import ModelConfig, shown
from minillm.config.files import open_file, unreadable
from minillm.errors import WeightsError
from minillm.model.checkpoint import listed
from minillm.model.gguf.blocks import block_layout, dequantised
from minillm.model.gguf.header import GGUFFile, GGUFTensor

_PIECE_NUMBERS = 1 << 21  # 8 MiB of float32
_AGAIN = "the file is damaged or incomplete: download it again"
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class Rewrite:
    """One tensor on its way: `heads` > 0 means rows to reorder in so many heads."""

    source: GGUFTensor
    target: str
    shape: tuple[int, ...]
    heads: int = 0

    def pieces(self, file: GGUFFile) -> Iterator[Tensor]:
        """The numbers, float32, in the folder's order, about two million at a time.

        Raises:
            UnreadableFile, WeightsError: the file changed, or holds infinities or NaN.
        """
        type_name, numbers, _ = block_layout(self.source.type_id)
        for data in self._data(file, self._step(numbers)):
            piece = dequantised(data, self.source.type_id)
            if not torch.isfinite(piece).all():
                raise WeightsError(
                    f"{shown(self.source.name)} ({type_name}) holds numbers that are not finite", _AGAIN
                )
            yield self._in_order(piece, math.prod(self.shape[1:]))

    def blocks(self, file: GGUFFile) -> Iterator[Tensor]:
        """The rows of a matrix as the file has them, uint8, in the folder's order; `pieces` of raw blocks.

        Raises:
            UnreadableFile, WeightsError: the file changed.
        """
        for data in self._data(file, self._step(self.shape[1])):
            yield self._in_order(torch.frombuffer(bytearray(data), dtype=torch.uint8), self.row_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the file."""
        _, numbers, num_bytes = block_layout(self.source.type_id)
        return self.shape[-1] // numbers * num_bytes

    def _data(self, file: GGUFFile, step: int) -> Iterator[bytes]:
        """The file's bytes of `step` numbers at a time."""
        _, numbers, num_bytes = block_layout(self.source.type_id)
        with open_file(file.path) as opened:
            try:
                opened.seek(self.source.offset)
                left = math.prod(self.shape)
                while left:
                    count = min(step, left)
                    data = opened.read(count // numbers * num_bytes)
                    if len(data) != count // numbers * num_bytes:
                        raise WeightsError(f"{file.path.name} ends inside {shown(self.source.name)}", _AGAIN)
                    left -= count
                    yield data
            except OSError as error:
                raise unreadable(file.path, error) from None

    def _step(self, numbers: int) -> int:
        """Numbers of one piece: whole blocks; whole heads where rows are reordered; a vector is one piece."""
        if len(self.shape) == 1:
            return self.shape[0]
        least = math.prod(self.shape) // self.heads if self.heads else numbers
        return least * max(1, _PIECE_NUMBERS // least)

    def _in_order(self, piece: Tensor, width: int) -> Tensor:
        """`piece`, whose rows have `width` elements, with its rows in the folder's order."""
        if not self.heads:
            return piece
        rows = self.shape[0] // self.heads  # of one head; a piece holds whole heads
        return piece.view(-1, rows // 2, 2, width).transpose(1, 2).reshape(-1)


def rewrites(file: GGUFFile, config: ModelConfig, reordered: bool) -> list[Rewrite]:
    """Every tensor of the folder, checked: all are there, in the size that the config asks for, and no more.

    Raises:
        WeightsError: tensors are missing, unexpected, of another shape, or beyond the end of the file.
        UnsupportedModel: a tensor type that is not known.
    """
    wanted = _wanted(config, reordered)
    have = {name for name in file.tensors if name != ROPE_FREQS}
    problems = []
    for title, names in (("missing", wanted.keys() - have), ("unexpected", have - wanted.keys())):
        if names:
            problems.append(f"{len(names)} {title}: {listed(sorted(names))}")
    if problems:
        raise WeightsError(
            f"{file.path.name} does not hold the tensors of its architecture; {'; '.join(problems)}", _AGAIN
        )
    made = [Rewrite(file.tensors[name], *entry) for name, entry in wanted.items()]
    ends = sorted(
        (rewrite.source.offset, _require_size(file, rewrite), rewrite.source.name) for rewrite in made
    )
    for (_, end, name), (begin, _, other) in pairwise(ends):
        if begin < end:
            raise WeightsError(f"{shown(name)} and {shown(other)} overlap in {file.path.name}", _AGAIN)
    return made


def rope_factors(file: GGUFFile) -> list[float] | None:
    """The numbers of rope_freqs.weight, None where there is none."""
    tensor = file.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    rewrite = Rewrite(tensor, tensor.name, tensor.shape)
    if math.prod(tensor.shape) > 1 << 16:
        raise WeightsError(
            f"{ROPE_FREQS} is {shown(list(tensor.shape))}", "it has one number for each pair of a head"
        )
    _require_size(file, rewrite)
    return [n for piece in rewrite.pieces(file) for n in piece.tolist()]


def _require_size(file: GGUFFile, rewrite: Rewrite) -> int:
    """Where the tensor ends in the file, if its shape is the wanted one and it lies inside."""
    tensor = rewrite.source
    if tensor.shape != rewrite.shape:
        raise WeightsError(
            f"{shown(tensor.name)} is {shown(list(tensor.shape))}, "
            f"{file.path.name} itself asks for {shown(list(rewrite.shape))}",
            _AGAIN,
        )
    type_name, numbers, num_bytes = block_layout(tensor.type_id)
    if tensor.shape[-1] % numbers:
        raise WeightsError(f"a row of {shown(tensor.name)} is no whole number of {type_name} blocks", _AGAIN)
    end = tensor.offset + math.prod(tensor.shape) // numbers * num_bytes
    if end > file.size:
        raise WeightsError(f"{file.path.name} ends before {shown(tensor.name)} does", _AGAIN)
    return end


def _wanted(c: ModelConfig, reordered: bool) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """GGUF name -> (name in the folder, shape, heads whose rows are reordered)."""
    table: dict[str, tuple[str, tuple[int, ...], int]] = {
        "token_embd.weight": ("model.embed_tokens.weight", (c.vocab_size, c.hidden_size), 0),
        "output_norm.weight": ("model.norm.weight", (c.hidden_size,), 0),
    }
    if not c.tie_word_embeddings:
        table["output.weight"] = ("lm_head.weight", (c.vocab_size, c.hidden_size), 0)
    query, key = (c.num_attention_heads, c.num_key_value_heads) if reordered else (0, 0)
    matrices = {
        "attn_q": ("self_attn.q_proj", c.q_size, c.hidden_size, query, c.qkv_bias),
        "attn_k": ("self_attn.k_proj", c.kv_size, c.hidden_size, key, c.qkv_bias),
        "attn_v": ("self_attn.v_proj", c.kv_size, c.hidden_size, 0, c.qkv_bias),
        "attn_output": ("self_attn.o_proj", c.hidden_size, c.q_size, 0, c.o_bias),
        "ffn_gate": ("mlp.gate_proj", c.intermediate_size, c.hidden_size, 0, c.mlp_bias),
        "ffn_up": ("mlp.up_proj", c.intermediate_size, c.hidden_size, 0, c.mlp_bias),
        "ffn_down": ("mlp.down_proj", c.hidden_size, c.intermediate_size, 0, c.mlp_bias),
    }
    norms = {
        "attn_norm": ("input_layernorm", c.hidden_size),
        "ffn_norm": ("post_attention_layernorm", c.hidden_size),
    }
    if c.qk_norm:
        norms |= {f"attn_{x}_norm": (f"self_attn.{x}_norm", c.head_dim) for x in "qk"}
    for i in range(c.num_hidden_layers):
        here, there = f"blk.{i}.", f"model.layers.{i}."
        for name, (target, size) in norms.items():
            table[f"{here}{name}.weight"] = (f"{there}{target}.weight", (size,), 0)
        for name, (target, rows, width, heads, has_bias) in matrices.items():
            table[f"{here}{name}.weight"] = (f"{there}{target}.weight", (rows, width), heads)
            if has_bias:
                table[f"{here}{name}.bias"] = (f"{there}{target}.bias", (rows,), heads)
    return table
