"""Attention on tensor cores in the simulator: v3, d2, d3 against float64, and bitwise against each other."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from cases import DTYPES, REFERENCE, TENSOR_CASES, Case, check, make_meta, random
from torch import Tensor

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
RUNGS = ("v3", "d2", "d3")
each_dtype = pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
each_rung = pytest.mark.parametrize("rung", RUNGS)


@pytest.fixture(autouse=True, params=flavours())
def simulated(request):
    """Every test runs in each flavour; all but the first in reversed order, so that order cannot matter."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


def attend(case: Case, dtype: torch.dtype, rung: str) -> Tensor:
    q, k_cache, v_cache, meta, _ = case.build(dtype)
    return OPS.paged_attention(q, k_cache, v_cache, meta, case.dim**-0.5, case.window, rung)


@each_dtype
def test_against_float64_and_bit_by_bit(dtype, simulated):
    for case in TENSOR_CASES if simulated == "fast" else TENSOR_CASES[3:-1:4]:
        q, k_cache, v_cache, meta, tables = case.build(dtype)
        scale, lens = case.dim**-0.5, ([n for n, _ in case.seqs], [n for _, n in case.seqs])
        reference = REFERENCE.paged_attention(q, k_cache, v_cache, meta, scale, case.window)
        exact = oracle.paged_attention(q, k_cache, v_cache, tables, *lens, scale, case.window)
        v3, *others = (attend(case, dtype, rung) for rung in RUNGS)
        check(v3, reference, exact, case)
        assert all(torch.equal(v3, other) for other in others), case


@each_rung
def test_chunks_and_single_rows_give_the_bits_of_the_whole(rung):
    """The last rows of a prompt of 530: at once, in chunks, one by one, with drafted tokens behind them."""
    caches = [random(40, 16, 1, 64, dtype=torch.bfloat16, seed=s) for s in (1, 2)]
    q, table = random(530, 2, 64, dtype=torch.bfloat16, seed=3), list(range(39, 4, -1))

    def rows(first: int, end: int) -> Tensor:
        meta = make_meta([table], [end - first], [end], 16)
        return OPS.paged_attention(q[first:end], *caches, meta, 0.125, rung=rung)

    last = OPS.paged_attention(q[500:], *caches, make_meta([table], [30], [530], 16), 0.125, rung="v3")
    for first, end in [(500, 507), (505, 530), (529, 530), (511, 512), (512, 513), (508, 516)]:
        assert torch.equal(rows(first, end), last[first - 500 : end - 500]), (first, end)


def test_control_other_kernels_have_other_bits():
    case = Case([(9, 130)], heads=2, kv_heads=1, dim=64)
    assert not torch.equal(attend(case, torch.float16, "v2"), attend(case, torch.float16, "v3"))


@each_rung
def test_control_a_nan_in_an_owned_slot_is_seen(rung):
    for cache in (0, 1):
        q, *caches, meta, tables = Case([(2, 70)], heads=2, kv_heads=1, dim=64).build(torch.bfloat16)
        caches[cache][tables[0][0], 0] = math.nan
        assert OPS.paged_attention(q, *caches, meta, 0.25, rung=rung).isnan().all()


@each_rung
def test_large_scores_do_not_overflow(rung):
    q, k_cache, v_cache, meta, tables = Case([(40, 40)], heads=2, kv_heads=1, dim=64).build(torch.float16)
    for scale in (30.0, -30.0):
        exact = oracle.paged_attention(q, k_cache, v_cache, tables, [40], [40], scale, None)
        assert oracle.error(OPS.paged_attention(q, k_cache, v_cache, meta, scale, rung=rung), exact) < 1e-3


@each_rung
def test_one_row_of_one_head(rung):
    """An odd number of rows and splits: the parts of d3 still begin at a multiple of 16 bytes."""
    case = Case([(1, 5)], heads=1, kv_heads=1, dim=128)
    q, k_cache, v_cache, _, tables = case.build(torch.bfloat16)
    exact = oracle.paged_attention(q, k_cache, v_cache, tables, [1], [5], case.dim**-0.5, None)
    assert oracle.error(attend(case, torch.bfloat16, rung), exact) < 6e-3


@each_rung
def test_no_rows_at_all(rung):
    for seqs in ([], [(0, 5), (0, 0)]):
        q, k_cache, v_cache, meta, _ = Case(seqs, heads=2, kv_heads=1, dim=64).build(torch.bfloat16)
        assert OPS.paged_attention(q, k_cache, v_cache, meta, 1.0, rung=rung).shape == (0, 2, 64)


@pytest.mark.parametrize("dim", [64, 128])
@each_rung
def test_shared_memory_has_no_bank_conflicts(rung, dim, simulated):
    if simulated == "asan":
        pytest.skip("the asan flavour counts nothing")
    with profile() as p:  # 16 rows: a warp has all or none, so each access is of all its lanes
        attend(Case([(8, 100)], heads=4, kv_heads=2, dim=dim), torch.bfloat16, rung)
    assert p.shared_wavefronts * 128 == p.shared_read_bytes + p.shared_write_bytes > 0


@each_rung
def test_keys_and_values_are_read_once(rung, simulated):
    """By all the query heads of a group, in whole tiles, and none behind the end."""
    if simulated == "asan":
        pytest.skip("the asan flavour counts nothing")
    case = Case([(2, 100), (1, 600)], heads=8, kv_heads=2, dim=64)
    with profile() as p:
        attend(case, torch.bfloat16, rung)
    assert p.tensors["k_cache"][0] == p.tensors["v_cache"][0] == 700 * 2 * 64 * 2


@pytest.mark.parametrize(("rung", "instead"), [("v3", "v2"), ("d2", "d1"), ("d3", "d1")])
def test_what_they_were_not_written_for_runs_on_others_and_says_so(rung, instead):
    for dtype, dim, word in [(torch.float32, 64, "bfloat16 and float16"), (torch.float16, 32, "head_dim 32")]:
        q, *caches, meta, _ = Case([(2, 9)], heads=2, kv_heads=1, dim=dim).build(dtype)
        with pytest.warns(UserWarning, match=f"rung {instead} instead of {rung}.*{word}"):
            found = OPS.paged_attention(q, *caches, meta, 0.2, rung=rung)
        assert torch.equal(found, OPS.paged_attention(q, *caches, meta, 0.2, rung=instead))
