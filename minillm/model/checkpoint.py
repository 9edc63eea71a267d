"""Safetensors files as a set of named byte ranges, read in pieces.

    [ 8 bytes: n ][ n bytes: JSON {"name": {"dtype", "shape", "data_offsets"}} ][ tensor bytes ... ]

Headers are read here and not by the `safetensors` library, which maps the file into memory: a mapped file
that is cut short while it is read ends the process with SIGBUS, and mapped pages count as memory of the
process, so a model would need twice its size while it loads. With ordinary reads a file may shrink, vanish or
fail at any moment, and the result is a typed error.

The format requires that a header describes every byte after it: tensors lie one after the other,
without gaps, from the end of the header to the end of the file.

Shards are found by name in the model's folder. A name in the index that leads out of the folder is refused. A
link is followed wherever it leads: snapshots in the Hugging Face cache are made of links.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from minillm.config import shown
from minillm.config.files import (
    SETTINGS_LIMIT,
    exists,
    open_file,
    parse_object,
    read_object,
    shown_path,
    unreadable,
)
from minillm.errors import WeightsError

_log = logging.getLogger(__name__)
_PIECE_BYTES = 8 << 20
_PIECE_NUMBERS = 2 << 20
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Of codes, and what belongs to them.
_OF_CODES = {"U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
_OF_CODES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu}
# Bits of every number the format knows. Most cannot be loaded, but the file is sound.
_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
_BITS |= dict.fromkeys(("U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
_BITS |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
_BITS |= dict.fromkeys(("I32", "U32", "F32"), 32) | dict.fromkeys(("I64", "U64", "F64"), 64)
INCOMPLETE = "the file is damaged or incomplete: download it again"


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
                f"{shown(self.name)} in {self.path.name} is {self.dtype}", "supported: F32, BF16, F16"
            )
        return _DTYPES[self.dtype]

    @property
    def any_dtype(self) -> torch.dtype:
        """The dtype as torch names it, of codes too.

        Raises:
            WeightsError: one that no scheme uses.
        """
        of_codes = _OF_CODES.get(self.dtype)
        return self.torch_dtype if of_codes is None else of_codes

    def numbers(self) -> Iterator[torch.Tensor]:
        """The tensor's numbers in order, flat, at most 2,097,152 at a time.

        Raises:
            UnreadableFile, WeightsError: as `pieces`; a dtype that is not supported.
        """
        for data in self.pieces(_PIECE_NUMBERS * self.torch_dtype.itemsize):
            yield torch.frombuffer(data, dtype=self.torch_dtype)

    def pieces(self, size: int = _PIECE_BYTES) -> Iterator[bytearray]:
        """The tensor's bytes in order, at most `size` at a time.

        Raises:
            UnreadableFile: the file has vanished since its header was read, or a read fails.
            WeightsError: the file ends inside the tensor.
        """
        with open_file(self.path) as file:
            left = self.nbytes
            try:
                file.seek(self.offset)
                while left:
                    data = bytearray(min(left, size))
                    if file.readinto(data) != len(data):
                        raise WeightsError(f"{self.path.name} ends inside {shown(self.name)}", INCOMPLETE)
                    left -= len(data)
                    yield data
            except OSError as error:
                raise unreadable(self.path, error) from None


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder, by name; nothing but headers is read.

    model.safetensors wins over model.safetensors.index.json, as in transformers: an index beside it is a
    leftover of an earlier save. With an index alone, its weight map says which file holds which tensor, and
    files that it does not name are not opened.

    Raises:
        UnreadableFile: a file is there and cannot be read.
        WeightsError: no weights, a missing shard, a damaged header, a tensor that is not where the
            index says.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if exists(single):
        if exists(index):
            _log.warning(f"{folder.name}: {single.name} is read, {index.name} beside it is not")
        return _read_header(single)
    if exists(index):
        return _from_index(folder, index)
    raise WeightsError(
        f"{folder} has neither model.safetensors nor model.safetensors.index.json",
        "only safetensors are read: convert other formats first",
    )


def has_weights(folder: Path) -> bool:
    """Whether `stored_tensors` finds files."""
    return exists(folder / "model.safetensors") or exists(folder / "model.safetensors.index.json")


def _from_index(folder: Path, index_path: Path) -> dict[str, StoredTensor]:
    weight_map = read_object(index_path, WeightsError).get("weight_map")
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{index_path.name} holds no weight_map", INCOMPLETE)
    for shard in weight_map.values():
        _require_name(shard, index_path)
    shards = sorted(set(weight_map.values()))
    absent = [shard for shard in shards if not exists(folder / shard)]
    if absent:
        raise WeightsError(f"missing shard {listed(absent)}", "download the model again")
    headers = {shard: _read_header(folder / shard) for shard in shards}
    lost = [name for name, shard in weight_map.items() if name not in headers[shard]]
    if lost:
        raise WeightsError(
            f"{index_path.name} points to tensors that are not there: {listed(lost)}", INCOMPLETE
        )
    _refuse_copies(weight_map, headers)
    # Tensors that the index does not list are kept: the loader refuses them by name.
    unlisted = {
        name: t for header in headers.values() for name, t in header.items() if name not in weight_map
    }
    return unlisted | {name: headers[shard][name] for name, shard in weight_map.items()}


def _refuse_copies(weight_map: dict[str, str], headers: dict[str, dict[str, StoredTensor]]) -> None:
    """Refuse a tensor that lies in two shards with different contents."""
    for shard, header in headers.items():
        for name, tensor in header.items():
            listed_in = weight_map.get(name, shard)
            if listed_in != shard and not same_numbers(tensor, headers[listed_in][name]):
                raise WeightsError(
                    f"{shown(name)} differs between {listed_in} and {shard}",
                    "remove the shard of another save",
                )


def same_numbers(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers, in the same dtype or in two.

    Raises:
        UnreadableFile, WeightsError: one of them cannot be read.
    """
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return all(x == y for x, y in zip(a.pieces(), b.pieces(), strict=True))
    return all(torch.equal(x.float(), y.float()) for x, y in zip(a.numbers(), b.numbers(), strict=True))


def _require_name(shard: object, index_path: Path) -> None:
    """Refuse a shard name that has a folder in it."""
    if not isinstance(shard, str):
        raise WeightsError(
            f"{index_path.name} holds no weight_map: {shown(shard)} is not a file name", INCOMPLETE
        )
    if shard in ("", "..") or Path(shard).name != shard or "\0" in shard:
        raise WeightsError(f"{index_path.name} names a file outside the folder: {shown(shard)}", INCOMPLETE)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that a file's header lists.

    Raises:
        UnreadableFile: it cannot be read.
        WeightsError: the header makes no sense, or does not describe the file.
    """
    with open_file(path) as file:
        try:
            num_bytes = os.fstat(file.fileno()).st_size
            size = int.from_bytes(file.read(8), "little")
            if num_bytes < 8 or size > min(num_bytes - 8, SETTINGS_LIMIT):
                raise _invalid(path, "its header is longer than the file, or than any header")
            text = file.read(size).decode()
        except OSError as error:
            raise unreadable(path, error) from None
        except UnicodeDecodeError:
            raise _invalid(path, "its header is not UTF-8") from None
    header = parse_object(text, f"the header of {shown_path(path)}", WeightsError)
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + size) for name, entry in header.items()]
    end = 8 + size
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            raise _invalid(path, f"{shown(tensor.name)} does not begin where the tensor before it ends")
        end += tensor.nbytes
    if end != num_bytes:
        raise _invalid(path, f"its tensors end at byte {end} of {num_bytes}")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: Path, name: str, entry: Any, base: int) -> StoredTensor:
    """One entry of a header; `base` is where the tensors begin."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _invalid(path, f"{shown(name)} has the unknown dtype {shown(dtype)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _invalid(path, f"{shown(name)} has no shape and data_offsets")
    begin, end = offsets
    if 8 * (end - begin) != math.prod(shape) * _BITS[dtype]:
        raise _invalid(path, f"{shown(name)} has another size than its dtype and shape say")
    return StoredTensor(name, path, dtype, tuple(shape), base + begin, end - begin)


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor whose dtype the format calls `dtype`."""
    return math.prod(shape) * _BITS[dtype] // 8


def _are_sizes(numbers: object) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)


def _invalid(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path.name} is not a valid safetensors file: {reason}", INCOMPLETE)


def listed(names: list[str]) -> str:
    """A few of many names, for an error message."""
    few, more = names[:_MOST_LISTED], len(names) - _MOST_LISTED
    return ", ".join(shown(name).strip("'") for name in few) + (f" and {more} more" if more > 0 else "")


_MOST_LISTED = 8
