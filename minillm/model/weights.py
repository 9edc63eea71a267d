"""Loads safetensors into the model's parameters and accounts for every tensor.

The decoder stores some projections fused; a checkpoint stores the pieces:

    qkv_proj.weight      q_proj rows | k_proj rows | v_proj rows
    gate_up_proj.weight  gate_proj rows | up_proj rows

`placements` is that table: checkpoint name -> the part of a parameter it fills. Tensors
that are missing, unexpected or of another shape are listed and refused before a byte is loaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minillm.config import shown
from minillm.errors import WeightsError
from minillm.model.checkpoint import StoredTensor, listed, same_numbers, stored_tensors
from minillm.model.decoder import Decoder
from minillm.ops.contract import plain

_ROTARY_TABLE = re.compile(r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$")
Progress = Callable[[int, int], None]


def placements(decoder: Decoder) -> dict[str, Tensor]:
    """Checkpoint name -> the rows of the parameter it fills (a view: writing it fills the model)."""
    c = decoder.config
    table: dict[str, Tensor] = {
        "model.embed_tokens.weight": plain(decoder.embed_tokens),
        "model.norm.weight": decoder.norm.weight,
    }
    if decoder.lm_head is not None:
        table["lm_head.weight"] = plain(decoder.lm_head)
    fused = {
        "self_attn.qkv_proj": {"q_proj": c.q_size, "k_proj": c.kv_size, "v_proj": c.kv_size},
        "mlp.gate_up_proj": {"gate_proj": c.intermediate_size, "up_proj": c.intermediate_size},
    }
    for i, layer in enumerate(decoder.layers):
        for name, parameter in layer.named_parameters():
            owner, _, kind = name.rpartition(".")
            if owner not in fused:
                table[f"model.layers.{i}.{name}"] = parameter
                continue
            rows = torch.split(parameter, list(fused[owner].values()))
            for piece, view in zip(fused[owner], rows, strict=True):
                table[f"model.layers.{i}.{owner.split('.')[0]}.{piece}.{kind}"] = view
    return table


def load_weights(decoder: Decoder, folder: Path, progress: Progress | None = None) -> str:
    """Fill every parameter of `decoder` from the safetensors in `folder`.

    Tensors are read in pieces of 8 MiB and converted to the parameter's dtype on the way, so peak
    memory is the model plus one piece.

    Args:
        progress: called with (bytes read, bytes in all) after each tensor.

    Returns:
        The SHA-256 of names, shapes and stored bytes: the weights' part of the KV envelope.

    Raises:
        UnreadableFile: a file cannot be read, or vanishes.
        WeightsError: damaged files; missing, unexpected or mis-shaped tensors, by name.
    """
    table, stored = placements(decoder), stored_tensors(folder)
    stored = _as_saved_by_the_model(stored)
    if decoder.config.tie_word_embeddings:
        _join_tied(stored)
    _account(table, stored)
    total, done = sum(t.nbytes for t in stored.values()), 0
    digest = hashlib.sha256()
    for name in sorted(stored):
        digest.update(f"{name} {stored[name].dtype} {stored[name].shape}\n".encode())
        _fill(table[name], stored[name], digest.update)
        done += stored[name].nbytes
        if progress:
            progress(done, total)
    return digest.hexdigest()


def _as_saved_by_the_model(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under the names of a causal language model.

    A checkpoint of the part without a head lacks the prefix "model.". Tables of the rotary embedding, which
    old versions of transformers saved, are left out: they are computed from the config.
    """
    kept = {name: t for name, t in stored.items() if not _ROTARY_TABLE.search(name)}
    if "embed_tokens.weight" not in kept:
        return kept
    return {name if name.startswith("lm_head.") else f"model.{name}": t for name, t in kept.items()}


def _join_tied(stored: dict[str, StoredTensor]) -> None:
    """Keep a tied checkpoint's one matrix under the embedding's name, under whichever name it is stored.

    Raises:
        WeightsError: it is stored under both, and the numbers differ.
    """
    head = stored.pop("lm_head.weight", None)
    if head is None:
        return
    embedding = stored.setdefault("model.embed_tokens.weight", head)
    if embedding is not head and not same_numbers(head, embedding):
        raise WeightsError(
            "tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight",
            "set tie_word_embeddings to false in config.json if the head is meant to be used",
        )


def _account(table: dict[str, Tensor], stored: dict[str, StoredTensor]) -> None:
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
        if stored[name].shape != tuple(table[name].shape)
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {listed(shapes)}")
    if problems:
        raise WeightsError(
            f"weights do not match the config; {'; '.join(problems)}",
            "config.json and the safetensors files must come from the same model",
        )


def _fill(target: Tensor, stored: StoredTensor, update_digest: Callable[[bytearray], None]) -> None:
    """Copy a stored tensor into `target`, piece by piece, converting its dtype."""
    flat, start = target.detach().view(-1), 0
    for data in stored.pieces():
        update_digest(data)
        piece = torch.frombuffer(data, dtype=stored.torch_dtype)
        flat[start : start + len(piece)].copy_(piece)
        start += len(piece)
