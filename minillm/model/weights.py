"""Loads safetensors into the model's parameters and accounts for every tensor.

The decoder stores some projections fused; a checkpoint stores the pieces, or the whole, perhaps transposed:

    qkv       q_proj rows | k_proj rows | v_proj rows          expert_gate_up   gate rows | up rows, by expert
    gate_up   gate_proj rows | up_proj rows

`placements` is the table: checkpoint name -> the part of a parameter that it fills. The names come from the
family (`families/family.py`). Tensors that are missing, unexpected or of another shape are listed and refused
before a byte is loaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from minillm.config import ModelConfig, shown
from minillm.errors import UsageError, WeightsError
from minillm.model.blocks import Layer
from minillm.model.checkpoint import StoredTensor, listed, same_numbers, stored_tensors
from minillm.model.decoder import Decoder, storage_of
from minillm.model.families import FAMILIES, CheckpointNames
from minillm.model.multimodal import refuse_vision, text_tensors
from minillm.model.placement import Placement, layer_placements
from minillm.model.quantization.filling import fill, quantize_stored
from minillm.model.quantization.plan import planned
from minillm.model.stored_pieces import (
    Piece,
    find_pieces,
    load_piece,
    orders_of,
    plan_from_files,
    quantization_of,
)
from minillm.ops.contract import Weight, plain
from minillm.ops.reference import ReferenceOps

_COMPUTED = re.compile(
    r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$|(^|\.)attn\.(bias|masked_bias)$"
)
Progress = Callable[[int, int], None]
_HASHED = 1 << 20  # bytes of a stored quantised matrix that are read for the digest at a time


def placements(decoder: Decoder) -> dict[str, Placement]:
    """Checkpoint name -> the part of the parameter it fills (a view: writing it fills the model)."""
    names = FAMILIES[decoder.config.family].names
    table: dict[str, Placement] = {}

    def put(name: str, view: Tensor, shape: tuple[int, ...] | None = None) -> None:
        table[name] = Placement(view.detach(), shape or tuple(view.shape))

    put(f"{names.prefix}{names.embedding}.weight", plain(decoder.embed_tokens))
    for kind, parameter in decoder.norm.named_parameters():
        put(f"{names.prefix}{names.final_norm}.{kind}", parameter)
    if decoder.positions is not None:
        put(f"{names.prefix}{names.positions}.weight", decoder.positions)
    if decoder.lm_head is not None:
        put(f"{names.head}.weight", plain(decoder.lm_head))
    for i, layer in enumerate(decoder.layers):
        in_layer = names.prefix + names.layer.format(i=i)
        for name, placement in layer_placements(cast(Layer, layer), decoder.config, names).items():
            table[in_layer + name] = placement
    return table


def load_weights(decoder: Decoder, folder: Path, progress: Progress | None = None) -> str:
    """Fill every parameter of `decoder` from the safetensors in `folder`.

    Tensors are read in pieces of 8 MiB and converted to the parameter's dtype on the way, or quantised, so
    peak memory is the model plus one piece. A matrix that is stored quantised is read twice: for the digest,
    then in strips of its rows.

    Args:
        progress: called with (bytes read, bytes in all) after each tensor.

    Returns:
        The SHA-256 of names, shapes, stored bytes and schemes: the weights' part of the KV envelope.

    Raises:
        UnreadableFile: a file cannot be read, or vanishes.
        WeightsError: damaged files; missing, unexpected or mis-shaped tensors, by name.
    """
    table = placements(decoder)
    stored = checkpoint_tensors(decoder.config, folder)
    pieces = find_pieces(table, quantization_of(folder))
    expected = _expected(table, pieces, stored)
    _drop_zero_biases(stored, expected, pieces)
    _account(expected, stored)
    orders = orders_of(pieces, stored) if pieces else {}
    matrices = decoder.begin_quantized(decoder.norm.weight.dtype, orders)
    total, done = sum(t.nbytes for t in stored.values()), 0
    digest = hashlib.sha256()
    for module, names in _by_module(stored, pieces):
        for name in names:
            digest.update(f"{name} {stored[name].dtype} {stored[name].shape}\n".encode())
            if module is None:
                _load_plain(decoder, matrices, table[name].view, stored[name], digest.update)
            else:
                for data in stored[name].pieces(_HASHED):
                    digest.update(data)
            done += stored[name].nbytes
        if module is not None:
            piece = pieces[module]
            digest.update(f"{piece.scheme}\n".encode())  # other settings make other numbers of these bytes
            load_piece(decoder.ops, matrices.get(storage_of(piece.view)), piece, piece.tensors(stored))
        if progress:
            progress(done, total)
    return digest.hexdigest()


def checkpoint_tensors(config: ModelConfig, folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder's text model, under the names of `placements`; only headers are read.

    Raises:
        UnreadableFile, WeightsError: as `stored_tensors`; a vision part; tied matrices that differ.
    """
    stored = stored_tensors(folder)
    names = FAMILIES[config.family].names
    if config.multimodal:
        stored = text_tensors(stored, folder.name)
    else:
        refuse_vision(stored)
    stored = _as_saved_by_the_model(stored, names)
    if config.tie_word_embeddings:
        _join_tied(stored, names)
    return stored


def with_forms(config: ModelConfig, folder: Path, scheme: str | None) -> ModelConfig:
    """`config` with the form of each quantised matrix: as the files have them, or by a scheme of `LLM`.

    Raises:
        UsageError: a scheme for a model that is stored quantised.
        UnsupportedModel, WeightsError: what the files say cannot be loaded.
    """
    quantization = quantization_of(folder)
    if quantization is None:
        return planned(config, scheme)
    if scheme is not None:
        raise UsageError(
            f"{folder.name} is stored quantised ({quantization.method})",
            "leave quantization out, or take the original model",
        )
    with torch.device("meta"):
        decoder = Decoder(config, ReferenceOps())
    pieces = find_pieces(placements(decoder), quantization)
    return plan_from_files(config, decoder, pieces, checkpoint_tensors(config, folder))


def _load_plain(
    decoder: Decoder,
    matrices: Mapping[int, Weight],
    view: Tensor,
    stored: StoredTensor,
    update_digest: Callable[[bytearray], None],
) -> None:
    """A tensor of plain numbers: copied, or quantised on the way."""
    if (matrix := matrices.get(storage_of(view))) is None:
        fill(view, stored, update_digest)
    else:
        quantize_stored(decoder.ops, matrix, view, stored, update_digest)


def _expected(
    table: Mapping[str, Placement], pieces: Mapping[str, Piece], stored: Mapping[str, StoredTensor]
) -> dict[str, tuple[int, ...] | None]:
    """The shape of every tensor that must be there; None: its scheme knows it."""
    expected: dict[str, tuple[int, ...] | None] = {
        name: placement.shape
        for name, placement in table.items()
        if name.removesuffix(".weight") not in pieces
    }
    for module, piece in pieces.items():
        for end, part in piece.scheme.parts(piece.shape).items():
            if not part.optional or module + end in stored:
                expected[module + end] = None
    return expected


def _by_module(
    stored: Mapping[str, StoredTensor], pieces: Mapping[str, Piece]
) -> Iterator[tuple[str | None, list[str]]]:
    """All names in order. Those of a matrix that is stored quantised come together, with its module."""
    modules = {
        module + end: module for module, piece in pieces.items() for end in piece.scheme.parts(piece.shape)
    }
    for module, names in groupby(sorted(stored), key=modules.get):
        if module is not None:
            yield module, list(names)
        else:
            yield from ((None, [name]) for name in names)


def _as_saved_by_the_model(
    stored: dict[str, StoredTensor], names: CheckpointNames
) -> dict[str, StoredTensor]:
    """The tensors under the names of a causal language model.

    A checkpoint of the part without a head lacks the prefix, e.g. "model.". Tables of the rotary embedding
    and masks, which old versions of transformers saved, are left out: they are computed.
    """
    kept = {name: t for name, t in stored.items() if not _COMPUTED.search(name)}
    if f"{names.embedding}.weight" not in kept:
        return kept
    return {
        name if name.startswith(f"{names.head}.") else f"{names.prefix}{name}": t for name, t in kept.items()
    }


def _join_tied(stored: dict[str, StoredTensor], names: CheckpointNames) -> None:
    """Keep a tied checkpoint's one matrix under the embedding's name, under whichever name it is stored.

    Raises:
        WeightsError: it is stored under both, and the numbers differ.
    """
    own = f"{names.prefix}{names.embedding}.weight"
    head = stored.pop(f"{names.head}.weight", None)
    if head is None:
        return
    embedding = stored.setdefault(own, head)
    if embedding is not head and not same_numbers(head, embedding):
        raise WeightsError(
            f"tie_word_embeddings is true, but {names.head}.weight differs from {own}",
            "set tie_word_embeddings to false in config.json if the head is meant to be used",
        )


def _drop_zero_biases(
    stored: dict[str, StoredTensor], expected: Mapping[str, object], pieces: Mapping[str, Piece]
) -> None:
    """Leave out biases of quantised matrices that the model does not have, where all numbers are 0.

    Old versions of AutoGPTQ store one beside every matrix. A bias that says something stays, and is refused.
    """
    for module, piece in pieces.items():
        name = f"{module}.bias"
        if name not in stored or name in expected or stored[name].shape != piece.shape[:1]:
            continue
        if not any(part.any() for part in stored[name].numbers()):
            del stored[name]


def _account(expected: Mapping[str, tuple[int, ...] | None], stored: Mapping[str, StoredTensor]) -> None:
    """Refuse unless names and shapes agree exactly."""
    problems = []
    for title, names in (
        ("missing", sorted(expected.keys() - stored.keys())),
        ("unexpected", sorted(stored.keys() - expected.keys())),
    ):
        if names:
            problems.append(f"{len(names)} {title}: {listed(names)}")
    shapes = [
        f"{name} is {shown(list(stored[name].shape))}, the config asks for {list(shape)}"
        for name, shape in sorted(expected.items())
        if shape is not None and name in stored and stored[name].shape != shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {listed(shapes)}")
    if problems:
        raise WeightsError(
            f"weights do not match the config; {'; '.join(problems)}",
            "config.json and the safetensors files must come from the same model",
        )
