"""Products in which a row depends on the rows beside it: the comparison of rows notices it (contract C2).

Copies of the headers of csrc/cpu are changed. Only the products of int8 matrices are compiled.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import oracle
import pytest
import torch
from mutants import Edit, make_edits
from native import random
from quantized_matrices import matrix, packed
from quantized_products import differing_parts
from torch import Tensor

from minillm.config.quantization import Form
from minillm.ops.cpu import CpuOps
from minillm.toolchain.cpu import FLAGS
from minillm.toolchain.library import Library, Unit
from minillm.toolchain.sources import SHARED, csrc

HARNESS = Path(__file__).parent / "kernels" / "quantized.cpp"
ROUND_ROWS = "  parallel_for(padded, 16, [&]"
LARGEST_OF_ALL = """\
  largest_of_all = 0;
  for (int64_t i = 0; i < a.rows * a.in; i++)
    largest_of_all = __builtin_fmaxf(largest_of_all, __builtin_fabsf(static_cast<const float*>(a.x)[i]));
"""
SCALE_OF_ROW, SCALE_OF_ALL = (f"const float largest = {x};" for x in ("max_lanes(highest)", "largest_of_all"))
ROUND_GROUP = "// Rounds numbers to int8 or to fixed-point"
ADD_MINIMUM = "        if (minimum) to = fma(low[p], splat(of_x[row]), to);\n"
ADD_SUM = "        to = fma(sum, factor, to);\n"
MUTANTS: dict[str, list[Edit]] = {
    "one scale for the activations of all rows": [
        ("quantized_rows.h", ROUND_GROUP, f"inline float largest_of_all;\n\n{ROUND_GROUP}"),
        ("quantized_rows.h", SCALE_OF_ROW, SCALE_OF_ALL),
        ("quantized.h", ROUND_ROWS, LARGEST_OF_ALL + ROUND_ROWS),
    ],
    "minima are added first or last, by the number of rows": [
        (
            "quantized_tile.h",
            ADD_MINIMUM + ADD_SUM,
            f"if (R > 2)\n{ADD_SUM}{ADD_MINIMUM}if (R <= 2)\n{ADD_SUM}",
        )
    ],
}
Multiply = Callable[[Tensor, Tensor], Tensor]


def build(folder: Path, edits: list[Edit]) -> Multiply:
    """A product (rows, packed matrix of 20 outputs) with these edits in its headers."""
    folder.mkdir()
    for header in (csrc() / "cpu").glob("*.h"):
        shutil.copy(header, folder)
    make_edits(folder, edits)
    shutil.copy(HARNESS, folder)
    flags = [*(flag for flag in FLAGS if flag != "-O3"), "-O1", "-Wno-unused-function"]
    unit = Unit(folder / HARNESS.name, flags, ["-I", str(folder), "-I", str(csrc() / SHARED)])
    library = ctypes.CDLL(str(Library("mutant", [unit], folder=folder).compile_into(folder)))

    def multiply(x: Tensor, data: Tensor) -> Tensor:
        y = torch.full((len(x), 20), torch.nan)
        x = x.contiguous()
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, data, y)]
        library.multiply(*pointers, ctypes.c_int64(len(x)))
        return y

    return multiply


@pytest.mark.parametrize("cpu_isa", ["generic"], indirect=True)
def test_a_row_that_depends_on_its_neighbours_is_noticed(
    native_ops: CpuOps, cpu_isa: str, tmp_path: Path
) -> None:
    form, x = Form("int8", 32, minimum=True, int8_x=True), random(70, 100)
    whole = packed(native_ops, matrix(form, 20, 100, ordered=True), torch.float32)
    right = build(tmp_path / "right", [])
    assert torch.equal(right(x, whole.data), native_ops.linear(x, whole)), "the copy is the kernel"
    assert not differing_parts(lambda rows: right(rows, whole.data), x)
    for number, (name, edits) in enumerate(MUTANTS.items()):
        wrong = build(tmp_path / str(number), edits)
        assert differing_parts(lambda rows, wrong=wrong: wrong(rows, whole.data), x), name
        nearly = oracle.error(wrong(x, whole.data), right(x, whole.data).double())
        assert nearly < 0.02, f"{name}: no bound of errors would notice it"
