"""Safetensors files as a set of named byte ranges, read in pieces.

    [ 8 bytes: n ][ n bytes: JSON {"name": {"dtype", "shape", "data_offsets"}} ][ tensor bytes ... ]

`safetensors` validates the header (sizes, overlaps, holes). The bytes are then read with ordinary
file reads into the parameters, not through its memory map: mapped pages count as memory of the
process, and a model would need twice its size while it loads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from minillm.errors import WeightsError

_PIECE_BYTES = 8 << 20
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_AGAIN = "the file is damaged or incomplete: download it again"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `nbytes` bytes from `offset` of `path`."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it.

        Raises:
            WeightsError: not a float this engine knows.
        """
        if self.dtype not in _DTYPES:
            raise WeightsError(
                f"{self.name} in {self.path.name} is {self.dtype}", "supported: F32, BF16, F16"
            )
        return _DTYPES[self.dtype]

    def pieces(self) -> Iterator[bytearray]:
        """The tensor's bytes in order, at most 8 MiB at a time.

        Raises:
            WeightsError: the file ends inside the tensor.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.nbytes
            while left:
                data = bytearray(min(left, _PIECE_BYTES))
                if file.readinto(data) != len(data):
                    raise WeightsError(f"{self.path.name} ends inside {self.name}", _AGAIN)
                left -= len(data)
                yield data


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder, by name; nothing but headers is read.

    With model.safetensors.index.json the weight map says which file holds which tensor; files it
    does not name are not opened.

    Raises:
        WeightsError: no weights, a missing shard, a damaged header, a tensor that is not where the
            index says.
    """
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        return _from_index(folder, index_path)
    single = folder / "model.safetensors"
    if not single.is_file():
        raise WeightsError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json",
            "only safetensors are read: convert other formats first",
        )
    return _read_header(single)


def _from_index(folder: Path, index_path: Path) -> dict[str, StoredTensor]:
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WeightsError(f"{index_path.name} holds no weight_map", _AGAIN) from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightsError(f"{index_path.name} names a file outside the folder: {shard!r}")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise WeightsError(f"missing shard {', '.join(absent)}", "download the model again")
    headers = {shard: _read_header(folder / shard) for shard in shards}
    lost = [name for name, shard in weight_map.items() if name not in headers[shard]]
    if lost:
        raise WeightsError(f"{index_path.name} points to tensors that are not there: {', '.join(lost)}")
    # What a shard holds beside the map is kept, for the accounting to refuse by name.
    unlisted = {
        name: t for header in headers.values() for name, t in header.items() if name not in weight_map
    }
    return unlisted | {name: headers[shard][name] for name, shard in weight_map.items()}


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(header_size))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path.name} is not a valid safetensors file: {error}", _AGAIN) from None
    base = 8 + header_size
    return {
        name: StoredTensor(
            name,
            path,
            entry["dtype"],
            tuple(entry["shape"]),
            base + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
