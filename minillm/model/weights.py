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
from collections.abc import Callable
from pathlib import Path
from typing import cast

from torch import Tensor

from minillm.config import ModelConfig, shown
from minillm.errors import WeightsError
from minillm.model.blocks import Layer
from minillm.model.checkpoint import StoredTensor, listed, same_numbers, stored_tensors
from minillm.model.decoder import Decoder, storage_of
from minillm.model.families import FAMILIES, CheckpointNames
from minillm.model.multimodal import refuse_vision, text_tensors
from minillm.model.placement import Placement, layer_placements
from minillm.model.quantization.filling import fill, quantize_stored
from minillm.ops.contract import plain

_COMPUTED = re.compile(
    r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$|(^|\.)attn\.(bias|masked_bias)$"
)
Progress = Callable[[int, int], None]


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
    peak memory is the model plus one piece.

    Args:
        progress: called with (bytes read, bytes in all) after each tensor.

    Returns:
        The SHA-256 of names, shapes and stored bytes: the weights' part of the KV envelope.

    Raises:
        UnreadableFile: a file cannot be read, or vanishes.
        WeightsError: damaged files; missing, unexpected or mis-shaped tensors, by name.
    """
    table = placements(decoder)
    stored = checkpoint_tensors(table, decoder.config, folder)
    quantized = decoder.begin_quantized(decoder.norm.weight.dtype)
    total, done = sum(t.nbytes for t in stored.values()), 0
    digest = hashlib.sha256()
    for name in sorted(stored):
        digest.update(f"{name} {stored[name].dtype} {stored[name].shape}\n".encode())
        view = table[name].view
        if (matrix := quantized.get(storage_of(view))) is None:
            fill(view, stored[name], digest.update)
        else:
            quantize_stored(decoder.ops, matrix, view, stored[name], digest.update)
        done += stored[name].nbytes
        if progress:
            progress(done, total)
    return digest.hexdigest()


def checkpoint_tensors(
    table: dict[str, Placement], config: ModelConfig, folder: Path
) -> dict[str, StoredTensor]:
    """The tensors in `folder` that fill a decoder, by their names in `table`, which is `placements`.

    Raises:
        UnreadableFile, WeightsError: as `load_weights`.
    """
    names, stored = FAMILIES[config.family].names, stored_tensors(folder)
    if config.multimodal:
        stored = text_tensors(stored, folder.name)
    else:
        refuse_vision(stored)
    stored = _as_saved_by_the_model(stored, names)
    if config.tie_word_embeddings:
        _join_tied(stored, names)
    _account(table, stored)
    return stored


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


def _account(table: dict[str, Placement], stored: dict[str, StoredTensor]) -> None:
    """Refuse unless names and shapes agree exactly."""
    problems = []
    for title, names in (
        ("missing", sorted(table.keys() - stored.keys())),
        ("unexpected", sorted(stored.keys() - table.keys())),
    ):
        if names:
            problems.append(f"{len(names)} {title}: {listed(names)}")
    shapes = [
        f"{name} is {shown(list(stored[name].shape))}, the config asks for {list(table[name].shape)}"
        for name in sorted(table.keys() & stored.keys())
        if stored[name].shape != table[name].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {listed(shapes)}")
    if problems:
        raise WeightsError(
            f"weights do not match the config; {'; '.join(problems)}",
            "config.json and the safetensors files must come from the same model",
        )
