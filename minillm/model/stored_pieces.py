"""A checkpoint whose matrices are stored quantised: which matrix of the model gets which form, and its rows.

    file                                               model
    q_proj.weight_packed, .weight_scale  --rows--+
    k_proj.weight_packed, ...            --rows--+-->  qkv, one form, one order of the inputs
    v_proj.weight_packed, ...            --rows--+

Only headers are read to decide. A matrix of several stored ones keeps their codes if all have the same form,
and with act-order the same order. Otherwise it is dequantised while it loads, and a line in the log says so:
nothing is rounded to another grid. A router is dequantised too (`config/quantization.py`). gpt-oss stores all
experts of a layer as one tensor; they become the rows of one matrix, gates before ups.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from minillm.config import ModelConfig, shown
from minillm.config.files import exists, read_object
from minillm.config.quantization import Form
from minillm.errors import UnsupportedModel, WeightsError
from minillm.model.checkpoint import StoredTensor, listed
from minillm.model.decoder import Decoder, storage_of
from minillm.model.placement import Placement
from minillm.model.quantization.config import stored_quantization
from minillm.model.quantization.stored import Shape, StoredQuantization, StoredScheme
from minillm.model.quantization.strips import headers_of, item, strips
from minillm.ops.contract import Ops, Weight
from minillm.ops.quantized import QuantizedMatrix

_log = logging.getLogger(__name__)
ROUTER = "router"  # as `Decoder.named_matrices` calls it
_ROWS = 1 << 18  # codes that are read at a time: each takes some bytes meanwhile


class Piece(NamedTuple):
    """A stored matrix: its module in the file, and where it goes. `experts`: matrices in one tensor, or 0."""

    module: str
    scheme: StoredScheme
    view: Tensor
    experts: int

    @property
    def shape(self) -> Shape:
        """(out, in) of one stored matrix."""
        if not self.experts:
            return self.view.shape[0], self.view.shape[1]
        # [experts, in, rows], or with gates and ups apart [experts, in, rows / 2, 2]: see placement.py
        return self.view[0, 0].numel(), self.view.shape[1]

    def tensors(self, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Its tensors in the file, by the ending of their names.

        Raises:
            WeightsError: one of them has not a matrix for every expert.
        """
        endings = self.scheme.parts(self.shape)
        found = {end: stored[self.module + end] for end in endings if self.module + end in stored}
        for tensor in found.values():
            if self.experts and tensor.shape[:1] != (self.experts,):
                raise WeightsError(
                    f"{shown(tensor.name)} has shape {shown(list(tensor.shape))}",
                    f"the model's config requires {self.experts} experts",
                )
        return found


def quantization_of(folder: Path) -> StoredQuantization | None:
    """What the config.json of a folder says about quantised matrices; None: nothing.

    Raises:
        UnsupportedModel: a scheme that is not supported, by name.
    """
    path = folder / "config.json"
    given = read_object(path, UnsupportedModel).get("quantization_config") if exists(path) else None
    return None if given is None else stored_quantization(given)


def find_pieces(table: Mapping[str, Placement], quantization: StoredQuantization | None) -> dict[str, Piece]:
    """The stored matrices of a decoder, by module. `table` is that of `placements`.

    Raises:
        UnsupportedModel: one is stored [in, out], as GPT-2 has them: the schemes share no layout of that.
    """
    found = dict[str, Piece]()
    for name, placement in table.items():
        module, view = name.removesuffix(".weight"), placement.view
        scheme = quantization.scheme_of(module) if quantization and view.dim() > 1 else None
        if scheme is not None:
            if view.dim() == 2 and not view.is_contiguous():
                raise UnsupportedModel(
                    f"{shown(module)} is quantised and stored [in, out]", "load the original model"
                )
            found[module] = Piece(module, scheme, view, len(view) if view.dim() > 2 else 0)
    return found


def plan_from_files(
    config: ModelConfig, decoder: Decoder, pieces: Mapping[str, Piece], stored: Mapping[str, StoredTensor]
) -> ModelConfig:
    """`config` with the form of each matrix that keeps its codes.

    Raises:
        WeightsError, UnsupportedModel: what a header says cannot be loaded.
    """
    by_storage = dict[int, list[Piece]]()
    for piece in pieces.values():
        by_storage.setdefault(storage_of(piece.view), []).append(piece)
    layers: list[dict[str, Form]] = [{} for _ in config.layers]
    outside = dict[str, Form]()
    dequantized = []
    for layer, name, weight in decoder.named_matrices():
        own = by_storage.get(storage_of(weight), [])
        if not own:
            continue
        if (form := _common_form(own, weight, stored)) is None or name == ROUTER:
            dequantized.append(name if layer is None else f"layer {layer} {name}")
        else:
            (outside if layer is None else layers[layer])[name] = form
    if dequantized:
        _log.warning(f"dequantised (routers, and what is stored in several ways): {listed(dequantized)}")
    specs = zip(config.layers, layers, strict=True)
    return replace(
        config,
        layers=tuple(replace(spec, quantization=forms or None) for spec, forms in specs),
        quantization=outside or None,
    )


def _common_form(pieces: list[Piece], weight: Tensor, stored: Mapping[str, StoredTensor]) -> Form | None:
    """The form of all pieces of a matrix; None if they differ, or do not fill it."""
    forms, orders = set(), set()
    for piece in pieces:
        tensors = piece.tensors(stored)
        missing = [end for end, part in piece.scheme.parts(piece.shape).items() if not part.optional]
        if absent := [piece.module + end for end in missing if end not in tensors]:
            raise WeightsError(f"missing: {listed(absent)}", "config.json says that they are there")
        headers = headers_of({end: item(t, 0) if piece.experts else t for end, t in tensors.items()})
        piece.scheme.require_parts(piece.module, headers, piece.shape)
        forms.add(piece.scheme.form(piece.shape, {end: header.dtype for end, header in headers.items()}))
        indices = [b"".join(t.pieces()) for end, t in tensors.items() if end.endswith("g_idx")]
        orders.add(indices[0] if indices else b"")
    rows = sum(piece.view.numel() for piece in pieces)
    is_whole = any(piece.experts for piece in pieces) or rows == weight.numel()
    return forms.pop() if len(forms) == len(orders) == 1 and is_whole else None


def orders_of(pieces: Mapping[str, Piece], stored: Mapping[str, StoredTensor]) -> dict[int, Tensor]:
    """The order of the inputs of each matrix that has one, by its storage."""
    found = dict[int, Tensor]()
    for piece in pieces.values():
        tensors = piece.tensors(stored)
        if storage_of(piece.view) not in found and any(end.endswith("g_idx") for end in tensors):
            few = next(strips(piece.module, piece.scheme, piece.shape, tensors, piece.scheme.strip_rows))
            order = piece.scheme.read(piece.module, few.tensors, few.shape, 0, 1).order
            if order is not None:
                found[storage_of(piece.view)] = order
    return found


def load_piece(ops: Ops, matrix: Weight | None, piece: Piece, tensors: Mapping[str, StoredTensor]) -> None:
    """Put a stored matrix into the rows of `matrix` that it fills, or dequantised into its view.

    Raises:
        UnreadableFile: a file cannot be read, or vanishes.
        WeightsError: the tensors contradict each other, or have numbers that are none.
    """
    for first, rows in _read(piece, tensors):
        if matrix is not None:
            ops.put_quantized(matrix, first, rows)
        elif piece.experts:
            raise UnsupportedModel(f"{shown(piece.module)} cannot be dequantised", "load the original model")
        else:
            piece.view[first - _first_row(piece) :][: rows.shape[0]].copy_(rows.dequantize())


def _first_row(piece: Piece) -> int:
    return piece.view.storage_offset() // piece.view.shape[1]


def _read(piece: Piece, tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[int, QuantizedMatrix]]:
    """The stored rows, some at a time, and the row of the matrix where each part begins."""
    if not piece.experts:
        for row, rows in _rows(piece, piece.module, tensors):
            yield _first_row(piece) + row, rows
        return
    stride = piece.view.stride(0) // piece.shape[1]  # rows from one expert to the next, all between included
    gates = piece.shape[0] // 2 if piece.view.dim() == 4 else 0
    for expert in range(piece.experts):
        own = {end: item(tensor, expert) for end, tensor in tensors.items()}
        for row, rows in _rows(piece, f"{piece.module}[{expert}]", own):
            if not gates:
                yield expert * stride + row, rows
                continue
            for at, start in ((0, 0), (1, gates)):  # gates and ups in turns -> all gates, then all ups
                yield expert * stride + start + row // 2, _every_other(rows, at)


def _rows(
    piece: Piece, name: str, tensors: Mapping[str, StoredTensor]
) -> Iterator[tuple[int, QuantizedMatrix]]:
    """The rows of one stored matrix, an even number at a time, and where they begin."""
    step = max(1, _ROWS // piece.shape[1] // 2) * 2
    for strip in strips(name, piece.scheme, piece.shape, tensors):
        for row in range(0, strip.shape[0], step):
            count = min(step, strip.shape[0] - row)
            yield strip.first + row, piece.scheme.read(name, strip.tensors, strip.shape, row, count)


def _every_other(rows: QuantizedMatrix, first: int) -> QuantizedMatrix:
    minima = None if rows.minima is None else rows.minima[first::2].contiguous()
    codes, scales = rows.codes[first::2].contiguous(), rows.scales[first::2].contiguous()
    return QuantizedMatrix(rows.form, codes, scales, minima)
