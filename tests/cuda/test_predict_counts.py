"""The formulas of minillm/bench/counts.py are the simulator's counters, to the wavefront, at odd sizes."""

from __future__ import annotations

import pytest
import torch

from minillm.bench import counts
from minillm.bench.counts import Counts
from minillm.bench.traffic import Shape, run_rung
from minillm.ops.simt import SimtOps, profile
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

B = torch.bfloat16


def counted(rung: str, shape: Shape) -> Counts:
    found = run_rung(rung, shape)
    return Counts(found.shared_wavefronts, found.mma)


def predicted(rung: str, shape: Shape) -> Counts:
    """The sum over the blocks of a rung."""
    if rung == "v2":
        blocks = [counts.v2_block(shape, *tile) for tile in counts.row_tiles(shape, 32)]
        return sum(blocks, Counts()).times(shape.num_heads)
    if rung == "d1":
        return counts.d1_block(shape).times(shape.num_heads)
    if rung == "v3":
        packed = shape.q_len * shape.num_heads // shape.num_kv_heads
        starts = [(first, min(128, packed - first)) for first in range(0, packed, 128)]
        return sum((counts.v3_block(shape, *start) for start in starts), Counts()).times(shape.num_kv_heads)
    parts = [shape.kv_len]
    if rung == "d3":
        parts = [min(512, shape.kv_len - at) for at in range(0, shape.kv_len, 512)]
    blocks = [counts.decode_block(shape, keys, rung == "d2") for keys in parts]
    return sum(blocks, Counts()).times(shape.num_kv_heads)


CASES = [
    ("v2", Shape(33, 70, 3, 1, 32)),
    ("v2", Shape(5, 100, 1, 1, 64, B)),
    ("v2", Shape(40, 129, 1, 1, 128, B)),
    ("v3", Shape(37, 70, 2, 1, 64, B)),
    ("v3", Shape(3, 523, 4, 2, 64, B)),
    ("v3", Shape(9, 9, 1, 1, 128, B)),
    ("d1", Shape(1, 129, 2, 1, 64, B)),
    ("d1", Shape(1, 300, 1, 1, 128, B)),
    ("d1", Shape(1, 33, 3, 1, 32)),
    ("d2", Shape(1, 70, 4, 2, 64, B)),
    ("d2", Shape(1, 577, 10, 1, 64, B)),
    ("d3", Shape(1, 70, 4, 2, 64, B)),
    ("d3", Shape(1, 577, 18, 1, 64, B)),
]


@pytest.mark.parametrize(("rung", "shape"), CASES, ids=str)
def test_attention(rung, shape):
    assert counted(rung, shape) == predicted(rung, shape)


@pytest.mark.parametrize(
    ("rung", "rows", "out", "size", "dtype"),
    [
        ("l1", 1, 33, 70, B),
        ("l1", 19, 16, 64, torch.float32),
        ("l2", 5, 33, 70, B),
        ("l2", 33, 40, 96, torch.float32),
        ("l3", 5, 133, 70, B),
        ("l4", 5, 70, 136, B),
        ("l4", 70, 65, 64, B),
        ("l5", 1, 33, 136, B),
        ("l5", 12, 40, 72, B),
        ("l5", 30, 33, 136, B),
        ("l5", 70, 70, 64, B),
    ],
)
def test_linear(rung, rows, out, size, dtype):
    x, weight = torch.randn(rows, size).to(dtype), torch.randn(out, size).to(dtype)
    with profile() as found:
        SimtOps().linear(x, weight, rung=rung)
    assert Counts(found.shared_wavefronts, found.mma) == counts.linear_counts(rung, rows, out, size)


def test_control_a_formula_off_by_a_tile_is_not_it():
    assert predicted("v2", Shape(33, 97, 3, 1, 32)) != predicted("v2", CASES[0][1])
    assert predicted("v3", Shape(37, 129, 2, 1, 64, B)) != predicted("v3", Shape(37, 70, 2, 1, 64, B))
