"""The CUDA kernels in the simulator, op by op, in each flavour: odd shapes, caches full of NaN.

Results are compared with float64. The shapes are some of those of `test_native_ops.py`, since simulation is
slow.
"""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from cases import CASES, DTYPES, REFERENCE, SETTINGS, Case, check, random, silu_roundings
from torch import Tensor

from minillm import SamplingParams
from minillm.errors import UnsupportedModel
from minillm.ops.contract import LayerCache, RopeTables
from minillm.ops.cuda_rungs import ATTENTION_RUNGS
from minillm.ops.sampling import SamplingBatch, noise_key
from minillm.ops.simt import SimtOps, flavour, flavours, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

OPS = SimtOps()
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])


@pytest.fixture(autouse=True, params=flavours())
def simulated(request):
    """Every test runs in each flavour; all but "fast" in reversed order, which must not change a result."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


# ---- matrices and rows ----------------------------------------------------------------------------


@each_dtype
def test_linear(dtype):
    for n, (rows, size, out) in enumerate([(1, 1, 1), (1, 33, 17), (17, 64, 33), (33, 31, 1), (5, 257, 40)]):
        x, weight = random(rows, size, dtype=dtype, seed=n), random(out, size, dtype=dtype, seed=n + 9)
        bias = random(out, dtype=dtype, seed=n + 5) if n % 2 else None
        found, exact = OPS.linear(x, weight, bias), oracle.linear(x, weight, bias)
        check(found, REFERENCE.linear(x, weight, bias), exact, (rows, size, out))


@each_dtype
def test_a_row_of_linear_does_not_depend_on_the_others(dtype):
    """To the bit, whatever the number of rows (contract C2); in float32 no rounding hides another order."""
    x, weight = random(49, 257, dtype=dtype), random(35, 257, dtype=dtype, seed=1)
    whole = OPS.linear(x, weight)
    for first, count in [(0, 1), (48, 1), (5, 15), (5, 16), (5, 17), (0, 32), (10, 33)]:
        assert torch.equal(OPS.linear(x[first : first + count], weight), whole[first : first + count])


@each_dtype
@pytest.mark.parametrize("size", [1, 17, 33, 257])
def test_norms(dtype, size):
    weight = random(size, dtype=dtype, seed=1)
    for rows in (1, 17):
        x, residual = random(rows, size, dtype=dtype, seed=2), random(rows, size, dtype=dtype, seed=3)
        exact = oracle.rms_norm(x, weight, 1e-5)
        check(OPS.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5), exact)
        normed, total = OPS.add_rms_norm(x, residual, weight, 1e-5)
        assert torch.equal(total, x + residual)
        expected = REFERENCE.add_rms_norm(x, residual, weight, 1e-5)[0]
        check(normed, expected, oracle.rms_norm(total, weight, 1e-5), f"{rows} rows")
    heads = random(3, 5, size, dtype=dtype)
    exact = oracle.rms_norm(heads, weight, 1e-5)
    check(OPS.rms_norm(heads, weight, 1e-5), REFERENCE.rms_norm(heads, weight, 1e-5), exact)


@each_dtype
@pytest.mark.parametrize("size", [1, 17, 33, 257])
def test_act_and_mul(dtype, size):
    for rows in (1, 17):
        x = random(rows, 2 * size, dtype=dtype, scale=4)
        check(OPS.act_and_mul(x), REFERENCE.act_and_mul(x), oracle.silu_mul(x), rows)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
def test_silu_is_rounded_before_it_is_multiplied(dtype):
    """As two ops do it. Left out are numbers so near a border that the last bit of expf decides."""
    x, once, twice, is_clear = silu_roundings(dtype)
    found = OPS.act_and_mul(x)
    assert torch.equal(found[is_clear], twice[is_clear])
    assert (once != twice)[is_clear].sum() > 100, "control: rounding once gives other numbers"


def test_silu_at_the_ends():
    gate = torch.tensor([[0.0, -0.0, 100.0, -100.0, 1e30, -1e30, math.inf, 88.0, -88.0]])
    x = torch.cat([gate, torch.ones_like(gate)], -1)
    assert torch.allclose(OPS.act_and_mul(x).double(), oracle.silu_mul(x), rtol=1e-6, atol=1e-36)


# ---- the cache ------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("dim", [2, 32, 96])
def test_rope_and_cache(dtype, dim):
    case = Case([(5, 9), (1, 40), (0, 3), (17, 17)], heads=6, kv_heads=2, dim=dim)
    q, k_cache, v_cache, meta, _ = case.build(dtype)
    before = [k_cache.clone(), v_cache.clone()]
    k, v = (random(23, 3, dim, dtype=dtype, seed=s)[:, 1:] for s in (7, 8))  # strided
    angles = random(64, dim // 2, scale=3)
    rope = RopeTables(angles.cos(), angles.sin())
    found = OPS.rope_and_cache(q, k, v, rope, LayerCache(k_cache, v_cache), meta)
    at = [table[meta.positions] for table in rope]
    references = [torch.empty_like(t) for t in before]
    check(
        found,
        REFERENCE.rope_and_cache(q, k, v, rope, LayerCache(*references), meta),
        oracle.rope(q, *at),
        "q",
    )
    written = k_cache.flatten(0, 1)[meta.slot_mapping]
    check(written, references[0].flatten(0, 1)[meta.slot_mapping], oracle.rope(k, *at), "k")
    assert torch.equal(v_cache.flatten(0, 1)[meta.slot_mapping], v)
    for cache, old in zip((k_cache, v_cache), before, strict=True):
        others = torch.ones(len(cache) * 16, dtype=torch.bool).index_fill_(0, meta.slot_mapping, False)
        assert torch.equal(cache.flatten(0, 1)[others].nan_to_num(), old.flatten(0, 1)[others].nan_to_num())


@each_dtype
@pytest.mark.parametrize("shape", [(7, 3, 2, 5), (7, 16, 2, 64), (7, 1, 1, 1), (7, 80, 4, 128)])
def test_copy_blocks(dtype, shape):
    caches = [random(*shape, dtype=dtype, seed=s) for s in range(2)]
    expected = [cache.clone() for cache in caches]
    source, destination = torch.tensor([6, 0, 2]), torch.tensor([1, 5, 2])
    REFERENCE.copy_blocks(expected, source, destination)
    OPS.copy_blocks(caches, source, destination)
    assert all(torch.equal(a, b) for a, b in zip(caches, expected, strict=True))


# ---- attention ------------------------------------------------------------------------------------


def attend(case: Case, dtype: torch.dtype, rung: str | None = None) -> tuple[Tensor, ...]:
    """The results of a rung, of the reference and of float64."""
    q, k_cache, v_cache, meta, tables = case.build(dtype)
    found = OPS.paged_attention(q, k_cache, v_cache, meta, case.dim**-0.5, case.window, rung)
    reference = REFERENCE.paged_attention(q, k_cache, v_cache, meta, case.dim**-0.5, case.window)
    lens = [n for n, _ in case.seqs], [n for _, n in case.seqs]
    exact = oracle.paged_attention(q, k_cache, v_cache, tables, *lens, case.dim**-0.5, case.window)
    return found, reference, exact


@pytest.mark.parametrize("rung", ATTENTION_RUNGS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_in_float32(case, rung):
    check(*attend(case, torch.float32, rung), case)


@pytest.mark.parametrize("rung", ATTENTION_RUNGS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
def test_attention_in_sixteen_bits(dtype, rung, simulated):
    for case in CASES[3:12:2] if simulated == "check" else CASES:
        check(*attend(case, dtype, rung), case)


@each_dtype
def test_prefill_and_decode_kernels_give_the_same_bits(dtype, simulated):
    for case in CASES[1:12:3] if simulated == "check" else CASES:
        v2, d1 = attend(case, dtype, "v2")[0], attend(case, dtype, "d1")[0]
        assert torch.equal(v2, d1), case


def test_control_the_naive_kernel_has_bits_of_its_own():
    found = [attend(CASES[3], torch.float32, rung)[0] for rung in ("v1", "v2")]
    assert not torch.equal(*found)


@pytest.mark.parametrize("rung", ATTENTION_RUNGS)
def test_large_scores_do_not_overflow(rung):
    case = Case([(40, 40)], heads=2, kv_heads=1, dim=32)
    q, k_cache, v_cache, meta, tables = case.build(torch.float32)
    exact = oracle.paged_attention(q, k_cache, v_cache, tables, [40], [40], 300.0, None)
    found = OPS.paged_attention(q, k_cache, v_cache, meta, 300.0, rung=rung)
    assert (
        oracle.error(found, exact) < 1e-3
    )  # scores of 1,000 have errors of 1e-4, and e^x makes that relative


@pytest.mark.parametrize("rung", ATTENTION_RUNGS)
@pytest.mark.parametrize("slot", ["first", "later"])
def test_control_a_nan_in_an_owned_slot_is_seen(rung, slot):
    case = Case([(2, 70)], heads=2, kv_heads=1, dim=32)
    q, k_cache, v_cache, meta, tables = case.build(torch.float32)
    v_cache[tables[0][0 if slot == "first" else 4], 0] = math.nan
    assert OPS.paged_attention(q, k_cache, v_cache, meta, 0.25, rung=rung).isnan().any()


@pytest.mark.parametrize("dim", [2, 48, 80, 512])
def test_other_head_sizes_are_refused_by_name(dim):
    q, k_cache, v_cache, meta, _ = Case([(1, 3)], heads=1, kv_heads=1, dim=dim).build(torch.float32)
    with pytest.raises(UnsupportedModel, match=f"head_dim {dim}"):
        OPS.paged_attention(q, k_cache, v_cache, meta, 1.0)


def test_rows_that_no_wide_load_can_read_are_refused():
    _, k_cache, v_cache, meta, _ = Case([(1, 3)], heads=1, kv_heads=1, dim=32).build(torch.float32)
    shifted = torch.zeros(33)[1:].view(1, 1, 32)
    with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        OPS.paged_attention(shifted, k_cache, v_cache, meta, 1.0)


# ---- sampling -------------------------------------------------------------------------------------


def logits_of(kind: str, rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    if kind == "equal":
        return torch.zeros(rows, vocab, dtype=dtype)
    logits = random(rows, vocab, dtype=dtype, scale=4)
    if kind == "ties":
        return logits.float().div(2).round().to(dtype)
    return logits.masked_fill(random(rows, vocab, seed=9) > 0.5, -math.inf) if kind == "masked" else logits


@pytest.mark.parametrize("kind", ["plain", "ties", "equal", "masked"])
def test_sample_draws_what_the_reference_draws(kind, simulated):
    repeats = 1 if simulated == "check" else 3
    for dtype, vocab, num_ids in [(DTYPES[0], 1, 1), (DTYPES[1], 17, 17), (DTYPES[2], 300, 290)]:
        params = [SamplingParams(**options) for options in SETTINGS for _ in range(repeats)]
        keys = [noise_key(seed, 0, 3) for seed in range(len(params))]
        seen = [[1, 1, 5, 0, 299] if p.repetition_penalty != 1.0 and vocab > 5 else [] for p in params]
        batch = SamplingBatch(params, keys, [[i for i in row if i < vocab] for row in seen], num_ids)
        logits = logits_of(kind, len(params), vocab, dtype)
        if kind == "masked":
            logits[:, 0] = 0  # at least one id is possible
        assert OPS.sample(logits, batch).tolist() == REFERENCE.sample(logits, batch).tolist()


# ---- no rows, and torch's checks of an op -----------------------------------------------------------


def test_no_rows_at_all():
    none = torch.empty(0, 32)
    assert OPS.linear(none, random(16, 32)).shape == (0, 16)
    assert OPS.linear(none.half(), random(16, 32).half(), rung="l5").shape == (0, 16)
    assert OPS.rms_norm(none, torch.ones(32), 1e-5).shape == (0, 32)
    assert [t.shape for t in OPS.add_rms_norm(none, none, torch.ones(32), 1e-5)] == [(0, 32), (0, 32)]
    assert OPS.act_and_mul(none).shape == (0, 16)
    for seqs in ([], [(0, 5), (0, 0)]):
        q, k_cache, v_cache, meta, _ = Case(seqs, heads=2, kv_heads=1, dim=32).build(torch.float32)
        for rung in (None, *ATTENTION_RUNGS):
            assert OPS.paged_attention(q, k_cache, v_cache, meta, 1.0, rung=rung).shape == (0, 2, 32)
        kv, rope = torch.empty(0, 1, 32), RopeTables(*[torch.ones(9, 16)] * 2)
        cache = LayerCache(k_cache, v_cache)
        assert OPS.rope_and_cache(q, kv, kv, rope, cache, meta).shape == (0, 2, 32)
    OPS.copy_blocks([torch.ones(2, 3)], *[torch.empty(0, dtype=torch.int64)] * 2)
    assert OPS.sample(torch.empty(0, 5), SamplingBatch([], [], [], 5)).shape == (0,)
    assert OPS.finite_rows(torch.empty(0, 5)).shape == (0,)
    assert OPS.finite_rows(torch.empty(2, 0)).tolist() == [True, True]


def test_opcheck():
    q, k_cache, v_cache, meta, _ = Case([(2, 9)], heads=2, kv_heads=1, dim=32).build(torch.float32)
    k_cache, v_cache = k_cache.nan_to_num(), v_cache.nan_to_num()
    x, weight, kv, angle = random(2, 32), random(32), random(2, 1, 32), random(16, 16)
    index = torch.tensor([0]), torch.tensor([1])
    ints, half = torch.tensor([1, 2]), torch.full((2, 2), 0.5, dtype=torch.float64)
    ops = torch.ops.minillm_simt
    places = meta.block_table, meta.query_start, meta.kv_len
    for op, arguments in [
        (ops.rms_norm, (x, weight, 1e-5, 0.0)),
        (ops.add_rms_norm, (x, x.clone(), weight, 1e-5)),
        (ops.act_and_mul, (x, "silu")),
        (ops.linear, (x, random(7, 32), random(7), "plain", False)),
        (ops.linear, (x.bfloat16(), random(7, 32).bfloat16(), None, "l5", True)),
        (
            ops.rope_and_cache,
            (q, kv, kv.clone(), angle, angle.clone(), k_cache, v_cache, meta.positions, meta.slot_mapping),
        ),
        (ops.copy_blocks, ([k_cache], *index)),
        (ops.sample, (x, *SamplingBatch([SamplingParams()] * 2, [1, 2], [[], []], 32).tensors(), 32)),
        (ops.finite_rows, (x,)),
        (ops.paged_attention, (q, k_cache, v_cache, *places, 0.2, 0, "v2", 0)),
        (ops.verify_coupled, (ints, ints.clone(), torch.tensor([-1, 0]), torch.tensor([0, 2]))),
        (ops.verify_draft, (ints.view(2, 1), None, random(2, 2, 16).abs(), half)),
    ]:
        torch.library.opcheck(op.default, (*arguments, 0), test_utils=["test_schema", "test_faketensor"])
