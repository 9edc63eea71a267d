"""Quantised blocks as float32 numbers, computed by the library `gguf`.

Most types of a GGUF file store 32 or 256 numbers of a row as one block: small integers, and one or two
scales for all. Q4_1, for example: `scale (2 bytes) | minimum (2) | 32 x 4 bits`, and a number is
`scale * bits + minimum`. The library belongs to llama.cpp and knows them all. It needs NumPy, which the
engine does not; so it is imported when a file is converted, and at no other time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm.errors import BackendError, UnsupportedModel


@cache
def block_layout(type_id: int) -> tuple[str, int, int]:
    """Name, numbers and bytes of a block of ggml's type `type_id`.

    Raises:
        UnsupportedModel: unknown, or not a type of weights.
    """
    library = _library()
    try:
        kind = library.GGMLQuantizationType(type_id)
    except ValueError:
        raise UnsupportedModel(f"the tensor type number {type_id} is not known", _SUPPORTED) from None
    numbers, num_bytes = library.GGML_QUANT_SIZES[kind]
    try:
        dequantised(bytes(num_bytes), type_id)
    except NotImplementedError:
        raise UnsupportedModel(f"the tensor type {kind.name} is not supported", _SUPPORTED) from None
    return kind.name, numbers, num_bytes


def dequantised(data: bytes, type_id: int) -> Tensor:
    """The float32 numbers in `data`, which holds whole blocks."""
    import numpy as np

    library = _library()
    with np.errstate(all="ignore"):  # damaged scales overflow; the caller looks at the numbers
        numbers = library.quants.dequantize(
            np.frombuffer(data, dtype=np.uint8), library.GGMLQuantizationType(type_id)
        )
    return torch.from_numpy(np.array(numbers, dtype=np.float32).reshape(-1))


_SUPPORTED = "supported: F32, F16, BF16, and the quantised types of llama.cpp that the library gguf reads"


def _library() -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise BackendError(f"GGUF files need the library gguf: {error}", "pip install gguf") from None
    return gguf
