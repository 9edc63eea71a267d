"""The simulator's mma gives the bits of an H100: csrc/simt/tensor_core.cpp against dot products of the chip.

tensor_core_dots.txt was written by scripts/gpu/tensor_cores.cu on an H100: operands, start and result of 640
sums of 16 products, as hexadecimal bits.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from minillm.ops.simt import compile_kernels
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

HERE = Path(__file__).parent
DOTS = HERE / "tensor_core_dots.txt"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


@pytest.fixture(scope="module")
def counted():
    return compile_kernels(HERE / "kernels" / "counted.cu")


def bits(words: list[str], dtype: torch.dtype) -> Tensor:
    """The numbers with these bits, as float32."""
    size = 2**16 if dtype.itemsize == 2 else 2**32
    signed = [value - size if (value := int(word, 16)) >= size // 2 else value for word in words]
    integer = torch.int16 if dtype.itemsize == 2 else torch.int32
    return torch.tensor(signed, dtype=integer).view(dtype).float()


def chip_dots(name: str) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(a [16], b [16], c [], d []) of one dtype."""
    found = []
    for line in DOTS.read_text().splitlines():
        kind, *words = line.split()
        if kind == name:
            a, b = bits(words[:16], DTYPES[name]), bits(words[16:32], DTYPES[name])
            found.append((a, b, *bits(words[32:], torch.float32)))
    return found


@pytest.mark.parametrize("name", list(DTYPES))
def test_sums_are_those_of_the_chip(counted, name):
    dots = chip_dots(name)
    assert len(dots) == 320
    plain_sums = 0
    for a, b, c, d in dots:
        x, w, y = torch.zeros(16, 16), torch.zeros(16, 8), torch.zeros(16, 8)
        x[5], w[:, 3], y[5, 3] = a, b, c
        counted.run(f"run_mma_{str(DTYPES[name]).removeprefix('torch.')}", x=x, w=w, y=y)
        assert y[5, 3] == d
        plain_sums += int((c.double() + a.double() @ b.double()).float() == d)
    # Control: most results are not the exact sum rounded to the nearest float, so another sum is noticed.
    assert plain_sums < len(dots) * 0.8
