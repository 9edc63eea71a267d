"""What a scheme must say about a matrix that is stored quantised, and the checks that all schemes share.

A published checkpoint stores one matrix as several tensors. They share the name of their module:

    model.layers.0.mlp.down_proj .weight_packed      int32 [out, in / 8]      codes, eight in a word
                                 .weight_scale       bf16  [out, in / 128]
                                 .weight_shape       int64 [2]

A `StoredScheme` says which tensors belong to a matrix [out, in] (`parts`), which form the engine keeps it in
(`form`, which the header of a file decides), and reads some rows of it (`read`). Rows are outputs.
`strips.py` reads a few rows of the stored tensors from the file, so neither they nor all codes are in memory.

A number is `scale * number(code) + minimum`. It is the file's number exactly, before the file's own library
rounds it to a dtype of 16 bits:

    scales of 16 bits, symmetric     the product of two short numbers is exact in float32
    scales of 16 bits, zero point z  the minimum -scale * z is exact in float32, and so is the sum
    scales of 32 bits, symmetric     rounded once, as in the library
    scales of 32 bits, zero point z  4 bits: the code becomes code - z in 8 bits. 8 bits: refused

Refused everywhere, with the name of the tensor: wrong shapes and dtypes, missing tensors, scales that are not
finite, FP8 codes that are no number, and weights beyond float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.config import shown
from minillm.config.quantization import Codes, Form
from minillm.errors import UnsupportedModel, WeightsError
from minillm.ops.quantized import QuantizedMatrix, dtype_of_scales

Shape = tuple[int, int]
AGAIN = "the file is damaged, or its config belongs to another model: download it again"
MOST_INPUTS = 1 << 31  # more than a matrix can have; a kernel's integers hold it
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_LARGEST: Mapping[Codes, float] = {"int8": 128, "fp8": 448, "int4": 8, "uint4": 15, "fp4": 6}


@dataclass(frozen=True)
class Part:
    """One stored tensor of a matrix: the shapes and dtypes that it may have.

    `says_shape`: it holds nothing but [out, in].
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False
    says_shape: bool = False


class Header(NamedTuple):
    """What a file says of a tensor. Its sizes may be such that no tensor can have them."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class StoredScheme(ABC):
    """How matrices are stored. `codes_part` and `scales_part`: which tensors hold codes and scales.

    `strip_rows`: rows from a multiple of it on are a stored matrix of their own (`strips.py`).
    """

    codes_part: str
    scales_part: str
    strip_rows: int = 8  # codes of 4 bits that lie along the outputs fill words of 32 bits

    @abstractmethod
    def parts(self, shape: Shape) -> dict[str, Part]:
        """The tensors of a matrix [out, in], by what is added to the name of its module.

        Raises:
            UnsupportedModel: no matrix of this shape can be stored so.
        """

    @abstractmethod
    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        """The form of a matrix [out, in] whose parts have these dtypes; the same for all its rows.

        Raises:
            UnsupportedModel: no form holds these numbers exactly.
        """

    @abstractmethod
    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        """Some rows of a matrix whose parts have been checked. Call `read`.

        Raises:
            WeightsError: the parts contradict each other.
        """

    def read(
        self, name: str, tensors: Mapping[str, Tensor], shape: Shape, first: int = 0, count: int | None = None
    ) -> QuantizedMatrix:
        """Rows `first` to `first + count` of the module `name`; all by default.

        `tensors` has the stored tensors, whole, by part. Tensors that are no part are ignored.

        Raises:
            UnsupportedModel: as `parts` and `form`.
            WeightsError: a tensor is missing, has the wrong shape or dtype, or numbers that are none.
        """
        rows = _rows(name, shape, first, count)
        headers = {part: Header(tensor.dtype, tuple(tensor.shape)) for part, tensor in tensors.items()}
        found = {part: tensors[part].detach() for part in self.require_parts(name, headers, shape)}
        self.require_shape(name, found, shape)
        form = self.form(shape, {part: tensor.dtype for part, tensor in found.items()})
        matrix = self.unpack(name, found, form, shape, rows)
        _require_numbers(matrix, name + self.codes_part, name + self.scales_part)
        return matrix

    def require_parts(self, name: str, headers: Mapping[str, Header], shape: Shape) -> list[str]:
        """The parts of a matrix [out, in] that are there; optional ones may be absent.

        Raises:
            WeightsError: one is missing, or has another shape or dtype.
        """
        return require_parts(name, headers, self.parts(shape))

    def require_shape(self, name: str, tensors: Mapping[str, Tensor], shape: Shape) -> None:
        """Refuse a part that says another shape.

        Raises:
            WeightsError: it does; both are named.
        """
        for end, part in self.parts(shape).items():
            if part.says_shape and end in tensors and tensors[end].tolist() != list(shape):
                raise WeightsError(
                    f"{shown(name + end)} is {tensors[end].tolist()}",
                    f"the model's config requires {list(shape)}",
                )


Matcher = Callable[[str], bool]


@dataclass(frozen=True)
class StoredQuantization:
    """Which module of a checkpoint is stored how: the first rule that matches its name decides."""

    method: str
    rules: tuple[tuple[Matcher, StoredScheme | None], ...]

    def scheme_of(self, module: str) -> StoredScheme | None:
        """The scheme of a module, named as in the file and without ".weight"; None: it is stored plainly."""
        for matches, scheme in self.rules:
            if matches(module):
                return scheme
        return None


def require_parts(name: str, headers: Mapping[str, Header], parts: Mapping[str, Part]) -> list[str]:
    """As the method of `StoredScheme`."""
    found = []
    for suffix, part in parts.items():
        tensor = headers.get(suffix)
        if tensor is None:
            if part.optional:
                continue
            raise WeightsError(f"{shown(name + suffix)} is missing", AGAIN)
        if tensor.dtype not in part.dtypes:
            raise WeightsError(
                f"{shown(name + suffix)} is {_short(tensor.dtype)}",
                f"expected {' or '.join(map(_short, part.dtypes))}",
            )
        if tensor.shape not in part.shapes:
            raise WeightsError(
                f"{shown(name + suffix)} has shape {shown(list(tensor.shape))}",
                f"expected {' or '.join(str(list(shape)) for shape in part.shapes)}",
            )
        found.append(suffix)
    return found


def require_group(group: int, bits: int, what: str) -> int:
    """Return `group`, the inputs that share a scale.

    Raises:
        UnsupportedModel: the kernels have no such group: codes fill words of 32 bits.
    """
    if group % (32 // bits) or not 0 < group < MOST_INPUTS:
        raise UnsupportedModel(
            f"{what}: groups of {shown(group)} inputs are not supported",
            f"supported: multiples of {32 // bits} with {bits} bits, or one scale for each output",
        )
    return group


def as_scales(scales: Tensor, form: Form) -> Tensor:
    """Stored scales in the dtype of a form, which holds them exactly."""
    return scales.to(dtype_of_scales(form)).contiguous()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rows(name: str, shape: Shape, first: int, count: int | None) -> range:
    out, in_features = shape
    if out <= 0 or in_features <= 0:
        raise WeightsError(f"{shown(name)} has shape {list(shape)}", "both sizes must be positive")
    count = out - first if count is None else count
    if first < 0 or count < 0 or first + count > out:
        raise WeightsError(f"{shown(name)} has no rows {first} to {first + count}", f"it has {out} rows")
    return range(first, first + count)


def _require_numbers(matrix: QuantizedMatrix, codes: str, scales: str) -> None:
    """Refuse codes and scales that are no finite numbers, or that multiply to infinity."""
    if not matrix.scales.isfinite().all():
        raise WeightsError(f"{shown(scales)} has scales that are infinite or NaN", AGAIN)
    largest = matrix.scales.float().abs() * _LARGEST[matrix.form.codes]
    if matrix.minima is not None:
        largest = largest + matrix.minima.float().abs()
    if not largest.isfinite().all():
        raise WeightsError(f"{shown(scales)} has scales too large for float32", AGAIN)
    if matrix.form.codes == "fp8" and ((matrix.codes & 0x7F) == 0x7F).any():
        raise WeightsError(f"{shown(codes)} has codes that are NaN", AGAIN)
