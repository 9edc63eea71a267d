"""The traffic of each attention rung is its formula, to the byte, tensor by tensor."""

from __future__ import annotations

import json

import pytest
import torch

from minillm.bench.traffic import FORMULAS, Shape, minimum, naive, run_rung, tiled
from minillm.cli.main import main
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

SHAPES = [
    Shape(1, 1),
    Shape(33, 33, head_dim=32),
    Shape(70, 70),
    Shape(5, 100, num_heads=3, num_kv_heads=1, head_dim=32),
    Shape(40, 129, head_dim=96, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("rung", FORMULAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counted_bytes_are_the_formula(rung, shape):
    counted = run_rung(rung, shape).tensors
    for tensor, moved in FORMULAS[rung](shape).items():
        assert counted[tensor] == moved, tensor
    indices = {"block_table", "query_start", "kv_len", "sums"}
    assert set(counted) == set(FORMULAS[rung](shape)) | (indices if rung == "v1" else indices - {"sums"})


def test_control_a_formula_off_by_a_tile_is_not_it():
    shape = SHAPES[2]
    assert tiled(Shape(70, 97))["k_cache"] != run_rung("v2", shape).tensors["k_cache"]


def test_what_tiling_removes_and_what_it_does_not():
    """The score matrix goes entirely; K and V still grow with the square, 32 times slower."""
    small, large = Shape(512, 512), Shape(1024, 1024)
    assert 3.99 < sum(naive(large)["scores"]) / sum(naive(small)["scores"]) < 4
    assert "scores" not in tiled(small)
    for tensor in ("k_cache", "v_cache"):
        growth = tiled(large)[tensor][0] / tiled(small)[tensor][0]
        assert 3.8 < growth < 4
        assert 30 < naive(large)[tensor][0] / tiled(large)[tensor][0] <= 32
    assert minimum(large) == 2 * minimum(small)


def test_the_command_prints_every_rung_beside_the_minimum(capsys):
    assert main(["bench", "kernels", "--backend", "simt", "--prompt-len", "40", "--json"]) == 0
    rows = {row["rung"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == {"v1", "v2", "d1"}
    assert rows["v1"]["scores"] == sum(naive(Shape(40, 40))["scores"])
    assert rows["v2"]["scores"] == rows["d1"]["scores"] == 0
    assert rows["v1"]["ratio"] > 5 * rows["v2"]["ratio"] > 5
    assert main(["bench", "kernels", "--backend", "simt", "--prompt-len", "16"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("v1", "v2", "d1", "ratio", "predicted, H100", "µs"))


def test_the_command_predicts_a_time_for_a_chip(capsys):
    command = ["bench", "kernels", "--backend", "simt", "--prompt-len", "16", "--json", "--chip"]
    seconds = {}
    for chip in ("h100", "a100", "T4"):
        assert main([*command, chip]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["chip"] == chip.upper()
        seconds[chip] = {row["rung"]: row["predicted_s"] for row in report["rows"]}
        assert all(row["bound"] for row in report["rows"])
    v2 = [of_rung["v2"] for of_rung in seconds.values()]
    assert min(v2) > 1.5e-6 and len(set(v2)) == 3
    assert seconds["T4"]["d1"] is None  # ptxas lays its loops out in a way that the record does not read
    assert main([*command, "b200"]) == 2
    assert "no figures of a chip 'b200'" in capsys.readouterr().err
