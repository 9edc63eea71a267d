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

GROUP = 128  # inputs of a group, where there is an order


def write(folder: Path, cfg: dict[str, Any], quantization: dict[str, Any] | None) -> int:
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
        if part.says_shape:
            tensors[piece.module + end] = torch.tensor(piece.shape)
        elif end == ".g_idx":  # the groups' inputs in turns, from both halves: no plain order
            groups = torch.arange(piece.shape[1], dtype=torch.int32) // GROUP
            tensors[piece.module + end] = groups.view(2, -1).T.flatten()
        else:
            shape = (piece.experts, *part.shapes[0]) if piece.experts else part.shapes[0]
            middle = 0x77777777 if end == ".qzeros" else 0  # GPTQ stores zero points minus one
            tensors[piece.module + end] = torch.full(shape, middle, dtype=part.dtypes[0])
    return tensors
