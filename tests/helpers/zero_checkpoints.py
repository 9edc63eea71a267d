"""Checkpoints of any scheme and size, all zeros: for tests that count memory and not numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from minillm.model.decoder import Decoder
from minillm.model.families import load_model_config
from minillm.model.stored_pieces import Piece, find_pieces, quantization_of
from minillm.model.weights import placements
from minillm.ops.reference import ReferenceOps


def write(folder: Path, cfg: dict[str, Any], quantization: dict[str, Any]) -> int:
    """Write a model folder without a tokenizer; returns the bytes of its tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(cfg | {"quantization_config": quantization}))
    with torch.device("meta"):
        decoder = Decoder(load_model_config(folder, ()), ReferenceOps())
    table = placements(decoder)
    pieces = find_pieces(table, quantization_of(folder))
    tensors = {
        name: torch.zeros(placement.shape, dtype=torch.bfloat16)
        for name, placement in table.items()
        if name.removesuffix(".weight") not in pieces
    }
    for piece in pieces.values():
        tensors |= _stored(piece)
    save_file(tensors, folder / "model.safetensors")
    return sum(tensor.nbytes for tensor in tensors.values())


def _stored(piece: Piece) -> dict[str, torch.Tensor]:
    tensors = {}
    for end, part in piece.scheme.parts(piece.shape).items():
        shape = (piece.experts, *part.shapes[0]) if piece.experts else part.shapes[0]
        tensors[piece.module + end] = torch.zeros(shape, dtype=part.dtypes[0])
    if (said := tensors.get(f"{piece.module}.weight_shape")) is not None:
        said.copy_(torch.tensor(piece.shape))
    if (indices := tensors.get(f"{piece.module}.g_idx")) is not None:
        # Inputs in turns belong to groups from both halves: an order that is not the plain one.
        groups = torch.arange(len(indices), dtype=indices.dtype) // GROUP
        indices.copy_(groups.view(2, -1).T.flatten())
    return tensors


GROUP = 128
