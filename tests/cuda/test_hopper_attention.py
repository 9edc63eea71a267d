"""attention_v4 in the simulator: against float64 and v3, and its bytes; and that a GPU refuses it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import oracle
import pytest
import torch
from cases import REFERENCE, TENSOR_CASES, Case, check
from torch import Tensor

from minillm.errors import UsageError
from minillm.ops.cuda_rungs import refuse_untested
from minillm.ops.simt import SimtOps, flavour, flavours, profile, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

OPS = SimtOps()
# Several blocks of rows; more tiles than stages; pages that fit a tile, that are larger, and that do not fit.
CASES = [
    Case([(70, 330), (1, 9)], heads=4, kv_heads=2, dim=64),
    Case([(3, 130), (5, 5)], heads=2, kv_heads=1, dim=128, block_size=64),
    Case([(4, 200)], heads=2, kv_heads=1, dim=128, block_size=128),
    Case([(2, 70), (0, 3)], heads=3, kv_heads=1, dim=64, block_size=1),
    Case([(2, 140)], heads=2, kv_heads=2, dim=64, block_size=24),
    Case([(9, 600)], heads=2, kv_heads=1, dim=64, window=150),
]
IN_ORDER = {"forward": {}, "reversed": {"reverse": True}, "shuffled": {"seed": 7}}


def attend(case: Case, dtype: torch.dtype, rung: str) -> Tensor:
    q, k_cache, v_cache, meta, _ = case.build(dtype)
    return OPS.paged_attention(q, k_cache, v_cache, meta, case.dim**-0.5, case.window, rung)


def compare(case: Case, dtype: torch.dtype) -> None:
    q, k_cache, v_cache, meta, tables = case.build(dtype)
    scale, lens = case.dim**-0.5, ([n for n, _ in case.seqs], [n for _, n in case.seqs])
    reference = REFERENCE.paged_attention(q, k_cache, v_cache, meta, scale, case.window)
    exact = oracle.paged_attention(q, k_cache, v_cache, tables, *lens, scale, case.window)
    v4 = attend(case, dtype, "v4")
    check(v4, reference, exact, case)
    assert torch.equal(v4, attend(case, dtype, "v3")), case


@pytest.mark.parametrize("number", range(len(CASES)))
def test_against_float64_and_with_the_bits_of_v3(number):
    """One dtype for each case; both are in the slow test."""
    compare(CASES[number], (torch.bfloat16, torch.float16)[number % 2])


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *TENSOR_CASES], ids=range(len(CASES) + len(TENSOR_CASES)))
def test_all_cases_in_both_dtypes(case):
    for dtype in (torch.bfloat16, torch.float16):
        compare(case, dtype)


@pytest.mark.parametrize(
    ("case", "order"), [(CASES[0], "forward"), (CASES[1], "reversed"), (CASES[4], "shuffled")]
)
def test_nothing_races_in_any_order(case, order):
    if "check" not in flavours():
        pytest.skip("the asan flavour has no race checks")
    alone = attend(case, torch.bfloat16, "v4")
    with flavour("check"), schedule(**IN_ORDER[order]):
        assert torch.equal(attend(case, torch.bfloat16, "v4"), alone)


def test_each_block_reads_whole_tiles_once_and_the_last_keys_alone():
    """Two blocks of rows see all six tiles; five are whole, of the sixth ten keys are there."""
    case = Case([(128, 330)], heads=2, kv_heads=1, dim=64)
    with profile() as p:
        attend(case, torch.bfloat16, "v4")
    row = 64 * 2
    tiles = (330 - 64 - 1) // 64 + 1, 6  # the first 64 tokens see 266 keys
    keys = sum(min(64 * n, 330) for n in tiles)
    assert p.tensors["k_cache"] == p.tensors["v_cache"] == (keys * row, 0)
    assert p.async_copy_bytes == 2 * keys * row
    assert p.mma == 0
    # Each of two warpgroups has four steps of k and four of keys a tile.
    assert p.wgmma % 8 == 0 and 0 < p.wgmma <= 2 * 8 * sum(tiles)


def test_rows_without_keys_are_zero():
    case = Case([(2, 70), (3, 40)], heads=2, kv_heads=1, dim=64)
    q, k_cache, v_cache, meta, _ = case.build(torch.bfloat16)
    meta.kv_len.zero_()
    assert not OPS.paged_attention(q, k_cache, v_cache, meta, 0.1, rung="v4").any()


def test_control_a_nan_in_an_owned_slot_is_seen():
    for cache in (0, 1):
        q, *caches, meta, tables = Case([(2, 130)], heads=2, kv_heads=1, dim=64).build(torch.bfloat16)
        caches[cache][tables[0][0], 0] = math.nan
        assert OPS.paged_attention(q, *caches, meta, 0.25, rung="v4").isnan().all()


@pytest.mark.parametrize(("dim", "dtype"), [(64, torch.float32), (32, torch.bfloat16)])
def test_what_it_cannot_take_runs_on_v2(dim, dtype):
    case = Case([(3, 40)], heads=2, kv_heads=1, dim=dim)
    with pytest.warns(UserWarning, match="rung v2 instead of v4"):
        found = attend(case, dtype, "v4")
    assert torch.equal(found, attend(case, dtype, "v2"))


@pytest.mark.parametrize(
    ("capability", "wanted", "says"),
    [
        ((8, 0), "1", "needs a GPU of sm_90"),
        ((12, 0), "1", "needs a GPU of sm_90"),
        ((9, 0), "0", "no chip has judged it"),
        ((9, 0), "1", ""),
    ],
)
def test_a_gpu_refuses_it_unless_asked(monkeypatch, capability, wanted, says):
    monkeypatch.setenv("MINILLM_UNTESTED_RUNGS", wanted)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    on_gpu = SimpleNamespace(is_cuda=True, device="cuda:0")
    if not says:
        return refuse_untested("v4", on_gpu)
    with pytest.raises(UsageError, match=says):
        refuse_untested("v4", on_gpu)
    refuse_untested("v3", on_gpu)
    refuse_untested("v4", torch.zeros(1))
