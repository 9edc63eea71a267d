"""The header of a GGUF file: its metadata, and where each tensor lies.

    "GGUF" | version | num_tensors | num_keys           4 + 4 + 8 + 8 bytes, little-endian
    num_keys    x  key | type | value                    a string is its length (8 bytes) and its bytes
    num_tensors x  name | n | n sizes | type | offset    sizes begin with the row length
    padding to general.alignment
    tensor bytes

The library `gguf` reads headers too, but it maps the file into memory and believes every count in it. A file
from the internet may say that it holds 2**60 strings. Here each count is compared with the bytes that are
left in the file before anything is read, and with a limit that no published model comes near.

Left out: version 1, big-endian files, arrays of arrays (llama.cpp refuses them as well).
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from minillm.config import shown
from minillm.config.files import open_file, unreadable
from minillm.errors import UnsupportedModel, WeightsError

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 << 20
MAX_ELEMENTS = 1 << 22  # of one array: ten times the largest published vocabulary
MAX_TENSORS = MAX_KEYS = 1 << 17
_MAX_DIMENSIONS = 4
_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_AGAIN = "the file is damaged or incomplete: download it again"
_OTHER_FORMATS = {
    b"vers": "a git-LFS pointer: the model itself was not downloaded (git lfs pull)",
    b"lmgg": "in a format older than GGUF",
    b"fmgg": "in a format older than GGUF",
    b"tjgg": "in a format older than GGUF",
    b"PK\x03\x04": "a zip or PyTorch archive",
}


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: `shape` as torch writes it ([rows, row length]), ggml's type number, place in the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """What a file declares. `size` is the file's own, in bytes."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    size: int


def is_gguf(path: Path) -> bool:
    """Whether the name ends in .gguf, or the file begins as one."""
    if path.suffix.lower() == ".gguf":
        return True
    with open_file(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> GGUFFile:
    """The header of a file.

    Raises:
        UnreadableFile: the file cannot be read.
        UnsupportedModel: another format, version or byte order.
        WeightsError: the header makes no sense.
    """
    with open_file(path) as file:
        try:
            return _Reader(path, file).whole()
        except OSError as error:
            raise unreadable(path, error) from None


class _Reader:
    """Reads forward through one header; every length is checked before it is used."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.limit = min(self.size, MAX_HEADER_BYTES)
        self.position = 0

    def whole(self) -> GGUFFile:
        num_tensors, num_keys = self._start()
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string("a key")
            if key in metadata:
                raise self._invalid(f"the key {shown(key)} appears twice")
            metadata[key] = self._value(key, self._number("I"))
        entries = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._invalid(f"general.alignment={shown(alignment)} is not a power of two")
        return GGUFFile(self.path, metadata, self._placed(entries, alignment), self.size)

    def _start(self) -> tuple[int, int]:
        """The counts, after the format, version and byte order have been checked."""
        magic = self.file.read(4)
        if magic != MAGIC:
            what = _OTHER_FORMATS.get(magic, "not a GGUF file" if magic else "empty")
            raise UnsupportedModel(f"{self.path.name} is {what}", "a GGUF file begins with GGUF")
        self.position = 4
        version = self._number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "big-endian" if swapped in (2, 3) else f"version {version}"
            raise UnsupportedModel(f"{self.path.name} is {what} GGUF", "supported: little-endian 2 and 3")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        self._require_count("tensors", num_tensors, MAX_TENSORS, 8 + 4 + 8 + 4 + 8)
        self._require_count("keys", num_keys, MAX_KEYS, 8 + 4 + 1)
        return num_tensors, num_keys

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._invalid(f"{shown(key)} has the unknown value type {kind}")
        return self._checked(key, kind, [self._number(_SCALARS[kind])])[0]

    def _array(self, key: str) -> list[Any]:
        kind, count = self._number("I"), self._number("Q")
        if kind != _STRING and kind not in _SCALARS:
            what = "arrays" if kind == _ARRAY else f"the unknown type {kind}"
            raise self._invalid(f"{shown(key)} is an array of {what}")
        width = 8 if kind == _STRING else struct.calcsize("<" + _SCALARS[kind])
        self._require_count(f"elements of {shown(key)}", count, MAX_ELEMENTS, width)
        if kind == _STRING:
            return [self._string(key) for _ in range(count)]
        numbers = struct.unpack(f"<{count}{_SCALARS[kind]}", self._take(count * width))
        return self._checked(key, kind, list(numbers))

    def _checked(self, key: str, kind: int, numbers: list[Any]) -> list[Any]:
        if kind == _BOOL:
            if any(n > 1 for n in numbers):
                raise self._invalid(f"{shown(key)} is neither true nor false")
            return [n == 1 for n in numbers]
        return [_decimal(n) for n in numbers] if kind == _FLOAT32 else numbers

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and the offset from where tensors begin."""
        name = self._string("a tensor's name")
        dimensions = self._number("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._invalid(f"{shown(name)} has {dimensions} dimensions")
        sizes = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        if not all(1 <= n < 1 << 40 for n in sizes):
            raise self._invalid(f"{shown(name)} has the sizes {shown(list(sizes))}")
        while len(sizes) > 1 and sizes[-1] == 1:  # a vector may be written as a matrix of one row
            sizes = sizes[:-1]
        return name, tuple(reversed(sizes)), self._number("I"), self._number("Q")

    def _placed(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: int
    ) -> dict[str, GGUFTensor]:
        base = math.ceil(self.position / alignment) * alignment
        placed: dict[str, GGUFTensor] = {}
        for name, shape, type_id, offset in entries:
            if name in placed:
                raise self._invalid(f"the tensor {shown(name)} appears twice")
            if offset % alignment or base + offset >= self.size:
                raise self._invalid(
                    f"{shown(name)} begins outside the file, or not at a multiple of {alignment}"
                )
            placed[name] = GGUFTensor(name, shape, type_id, base + offset)
        return placed

    def _string(self, what: str) -> str:
        data = self._take(self._number("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._invalid(f"a text of {shown(what)} is not UTF-8") from None

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _take(self, count: int) -> bytes:
        if count > self.limit - self.position:
            raise self._invalid("its header is longer than the file, or than any header")
        data = self.file.read(count)
        if len(data) != count:
            raise self._invalid("it became shorter while it was read")
        self.position += count
        return data

    def _require_count(self, what: str, count: int, most: int, width: int) -> None:
        """Refuse a count that the rest of the file cannot hold, at `width` bytes each or more."""
        if count > most or count * width > self.limit - self.position:
            raise self._invalid(f"it says that it has {count} {what}")

    def _invalid(self, reason: str) -> WeightsError:
        return WeightsError(f"{self.path.name} is not a valid GGUF file: {reason}", _AGAIN)


def _decimal(number: float) -> float:
    """The shortest decimal that rounds to this float32: 1e-05, where the file holds 9.999999747e-06.

    A config.json says 1e-05, and transformers computes with that number.
    """
    if math.isfinite(number):
        for digits in range(1, 9):
            short = float(f"{number:.{digits}g}")
            if abs(short) < 3.4e38 and struct.unpack("<f", struct.pack("<f", short))[0] == number:
                return short
    return number
