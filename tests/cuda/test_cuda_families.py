"""What families add to a layer, in the simulator: activations, norms, partial rope, capped scores, sinks."""

from __future__ import annotations

import math
from itertools import product

import family_oracle
import oracle
import pytest
import torch
from cases import CASES, DTYPES, REFERENCE, Case, check, random

from minillm.config import LayerSpec
from minillm.errors import UnsupportedModel
from minillm.ops.contract import LayerCache, RopeTables
from minillm.ops.cuda import CudaOps
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
SIZES = [1, 17, 33, 257]
GATED = ["silu", "gelu", "gelu_tanh", "relu", "swiglu_clamped"]
VARIANTS = [(3.0, False), (None, True), (2.0, True)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])


@pytest.fixture(autouse=True, params=flavours())
def simulated(request):
    """Every test runs in each flavour; all but "fast" in reversed order, which must not change a result."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


# ---- numbers and rows -----------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("activation", GATED)
def test_act_and_mul(dtype, activation):
    for rows, size in product((1, 17), SIZES):
        x = random(rows, 2 * size, dtype=dtype, scale=4)
        exact = family_oracle.act_and_mul(x, activation)
        check(OPS.act_and_mul(x, activation), REFERENCE.act_and_mul(x, activation), exact, (rows, size))


@each_dtype
@pytest.mark.parametrize("activation", GATED[:4])
def test_act(dtype, activation):
    for rows, size in product((1, 17), SIZES):
        x = random(rows, size, dtype=dtype, scale=4)
        exact = family_oracle.ACTIVATIONS[activation](x.double())
        check(OPS.act(x, activation), REFERENCE.act(x, activation), exact, (rows, size))


@pytest.mark.parametrize("activation", GATED)
def test_activations_at_the_ends(activation):
    gate = torch.tensor([[0.0, -0.0, 7.0, 7.5, 100.0, -100.0, 1e30, -1e30, math.inf, 88.0, -88.0]])
    for up in (1.0, 9.0, -9.0):
        x = torch.cat([gate, torch.full_like(gate, up)], -1)
        exact = family_oracle.act_and_mul(x, activation)
        assert torch.allclose(OPS.act_and_mul(x, activation).double(), exact, rtol=2e-6, atol=1e-36)


@pytest.mark.parametrize("activation", GATED)
def test_nan_stays_nan(activation):
    for gate, up in ((math.nan, 1.0), (1.0, math.nan)):
        assert OPS.act_and_mul(torch.tensor([[gate, up]]), activation).isnan().all()
    if activation != "swiglu_clamped":
        assert OPS.act(torch.tensor([[math.nan]]), activation).isnan().all()


@each_dtype
def test_softcap(dtype):
    for rows, size, cap in product((1, 17), SIZES, (0.5, 30.0)):
        x = random(rows, size, dtype=dtype, scale=20)
        exact = cap * torch.tanh(x.double() / cap)
        check(OPS.softcap(x, cap), REFERENCE.softcap(x, cap), exact, (rows, size, cap))
    ends = OPS.softcap(torch.tensor([[0.0, math.inf, -math.inf, math.nan]]), 30.0)[0]
    assert ends[:3].tolist() == [0, 30, -30]
    assert ends[3].isnan()


def test_what_no_kernel_computes_is_refused():
    with pytest.raises(RuntimeError, match="no activation tanh"):
        OPS.act(torch.ones(1, 2), "tanh")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="needs a gate"):
        OPS.act(torch.ones(1, 2), "swiglu_clamped")
    with pytest.raises(RuntimeError, match="not above 0"):
        OPS.softcap(torch.ones(1, 2), 0.0)


@each_dtype
@pytest.mark.parametrize("size", SIZES)
def test_norms_of_families(dtype, size):
    weight, bias = random(size, dtype=dtype, seed=1), random(size, dtype=dtype, seed=5)
    for rows, mean in product((1, 17), (0, 8)):
        x = (random(rows, size, seed=2) + mean).to(dtype)
        found, reference = OPS.layer_norm(x, weight, bias, 1e-5), REFERENCE.layer_norm(x, weight, bias, 1e-5)
        check(found, reference, family_oracle.layer_norm(x, weight, bias, 1e-5), (rows, mean))
        found, reference = (ops.rms_norm(x, weight, 1e-6, 1.0) for ops in (OPS, REFERENCE))
        check(found, reference, oracle.rms_norm(x, weight.double() + 1, 1e-6), (rows, mean))
        assert torch.equal(OPS.rms_norm(x, weight, 1e-6, 0.0), OPS.rms_norm(x, weight, 1e-6))


@each_dtype
def test_a_row_does_not_depend_on_the_others(dtype):
    """To the bit (contract C2)."""
    x, weight, bias = random(33, 130, dtype=dtype), random(130, dtype=dtype), random(130, dtype=dtype, seed=1)
    for first, count in [(0, 1), (32, 1), (5, 17)]:
        rows = slice(first, first + count)
        for found in (
            lambda x: OPS.layer_norm(x, weight, bias, 1e-5),
            lambda x: OPS.rms_norm(x, weight, 1e-5, 1.0),
            lambda x: OPS.softcap(x, 3.0),
            *(lambda x, a=a: OPS.act_and_mul(x, a) for a in GATED),
        ):
            assert torch.equal(found(x[rows]), found(x)[rows])


# ---- rope and attention ---------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("rotary_dim", [0, 2, 24, 62])
def test_rope_of_a_part_of_each_head(dtype, rotary_dim):
    case = Case([(5, 9), (1, 40), (0, 3), (17, 17)], heads=6, kv_heads=2, dim=64)
    q, k_cache, v_cache, meta, _ = case.build(dtype)
    k, v = (random(23, 3, 64, dtype=dtype, seed=s)[:, 1:] for s in (7, 8))
    angles = random(64, rotary_dim // 2, scale=3)
    rope = RopeTables(angles.cos(), angles.sin())
    found = OPS.rope_and_cache(q, k, v, rope, LayerCache(k_cache, v_cache), meta)
    at = [table[meta.positions] for table in rope]
    references = LayerCache(torch.empty_like(k_cache), torch.empty_like(v_cache))
    expected = REFERENCE.rope_and_cache(q, k, v, rope, references, meta)
    written, copied = (cache.flatten(0, 1)[meta.slot_mapping] for cache in (k_cache, references.k))
    for mine, theirs, before in ((found, expected, q), (written, copied, k)):
        turned = oracle.rope(before[..., :rotary_dim], *at)
        check(mine, theirs, torch.cat([turned, before[..., rotary_dim:].double()], -1), rotary_dim)
        assert torch.equal(mine[..., rotary_dim:], before[..., rotary_dim:])
    assert torch.equal(v_cache.flatten(0, 1)[meta.slot_mapping], v)


def test_more_rotated_components_than_a_head_has_are_refused():
    q, k_cache, v_cache, meta, _ = Case([(1, 3)], heads=1, kv_heads=1, dim=32).build(torch.float32)
    kv, angles = torch.zeros(1, 1, 32), torch.zeros(4, 17)
    places = k_cache, v_cache, meta.positions, meta.slot_mapping, 0
    with pytest.raises(RuntimeError, match="34 rotated components of 32"):
        torch.ops.minillm_simt.rope_and_cache(q.contiguous(), kv, kv, angles, angles, *places)


def attend(case: Case, dtype: torch.dtype, softcap: float | None, with_sinks: bool, rung: str | None = None):
    """The results of a rung, of the reference and of float64."""
    q, k_cache, v_cache, meta, tables = case.build(dtype)
    sinks = random(case.heads, dtype=dtype, seed=6, scale=2) if with_sinks else None
    spec = LayerSpec(case.window, 2 * case.dim**-0.5, softcap=softcap, sinks=with_sinks)
    arguments = q, LayerCache(k_cache, v_cache), meta, spec, sinks
    exact = family_oracle.variant_attention(case, q, k_cache, v_cache, tables, spec.scale, softcap, sinks)
    found = OPS.variant_attention(*arguments, **({"rung": rung} if rung else {}))
    return found, REFERENCE.variant_attention(*arguments), exact


@pytest.mark.parametrize("rung", ["v2", "d1"])
@pytest.mark.parametrize(("softcap", "with_sinks"), VARIANTS)
@each_dtype
def test_variant_attention(dtype, softcap, with_sinks, rung, simulated):
    for case in CASES[3:24:4] if simulated == "check" else CASES:
        found, reference, exact = attend(case, dtype, softcap, with_sinks, rung)
        check(found, reference, exact, case)


@each_dtype
@pytest.mark.parametrize(("softcap", "with_sinks"), VARIANTS)
def test_prefill_and_decode_kernels_give_the_same_bits(dtype, softcap, with_sinks, simulated):
    for case in CASES[1:24:5] if simulated == "check" else CASES:
        v2, d1 = (attend(case, dtype, softcap, with_sinks, rung)[0] for rung in ("v2", "d1"))
        assert torch.equal(v2, d1), case


def test_control_cap_and_sinks_change_the_result():
    plain, capped, sunk = (attend(CASES[3], torch.float32, *v)[2] for v in ((None, False), *VARIANTS[:2]))
    assert oracle.error(capped, plain) > 1e-2
    assert oracle.error(sunk, plain) > 1e-2


def test_the_default_rung_is_decode_for_one_row_per_sequence(simulated):
    if simulated == "asan":
        pytest.skip("the asan flavour counts nothing")
    for case, kernel in ((Case([(1, 9)], 2, 1, 32), "decode_d1"), (Case([(2, 9)], 2, 1, 32), "attention_v2")):
        with profile() as p:
            attend(case, torch.float32, 3.0, False)
        assert kernel in p.kernels


def test_other_rungs_know_neither_cap_nor_sinks():
    case = Case([(2, 9)], heads=2, kv_heads=1, dim=64)
    with pytest.raises(ValueError, match="rung v1 has no softcap and no sinks"):
        attend(case, torch.float16, 3.0, False, "v1")
    with pytest.warns(UserWarning, match="rung v2 instead of v3"):
        found = attend(case, torch.float16, 3.0, False, "v3")[0]
    assert torch.equal(found, attend(case, torch.float16, 3.0, False, "v2")[0])


def test_arguments_that_do_not_fit_are_refused():
    q, k_cache, v_cache, meta, _ = Case([(1, 3)], heads=2, kv_heads=1, dim=32).build(torch.float32)
    arguments, spec = (q, LayerCache(k_cache, v_cache), meta), LayerSpec(None, 1.0, sinks=True)
    with pytest.raises(ValueError, match="sinks is \\[3\\], q has 2 heads"):
        OPS.variant_attention(*arguments, spec, torch.zeros(3))
    with pytest.raises(RuntimeError, match="sinks has another dtype"):
        OPS.variant_attention(*arguments, spec, torch.zeros(2).half())
    q, k_cache, v_cache, meta, _ = Case([(1, 3)], heads=2, kv_heads=1, dim=80).build(torch.float32)
    with pytest.raises(UnsupportedModel, match="variant_attention: head_dim 80"):
        OPS.variant_attention(q, LayerCache(k_cache, v_cache), meta, spec, torch.zeros(2))


def test_heads_of_256_need_more_shared_memory_than_sm_75_has(monkeypatch):
    assert 256 in OPS.head_dims
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, has in (((7, 5), False), ((8, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert (256 in CudaOps._head_dims(OPS)) == has


# ---- no rows, and torch's checks of an op -----------------------------------------------------------


def test_no_rows_at_all():
    none, ones = torch.empty(0, 32), torch.ones(32)
    assert OPS.layer_norm(none, ones, ones, 1e-5).shape == (0, 32)
    assert OPS.act_and_mul(none, "gelu").shape == (0, 16)
    assert OPS.act(none, "relu").shape == OPS.softcap(none, 3.0).shape == (0, 32)
    for seqs in ([], [(0, 5), (0, 0)]):
        assert attend(Case(seqs, heads=2, kv_heads=1, dim=32), torch.float32, 3.0, True)[0].shape == (
            0,
            2,
            32,
        )


def test_opcheck():
    q, k_cache, v_cache, meta, _ = Case([(2, 9)], heads=2, kv_heads=1, dim=32).build(torch.float32)
    k_cache, v_cache = k_cache.nan_to_num(), v_cache.nan_to_num()
    ops, x, weight = torch.ops.minillm_simt, random(2, 32), random(32)
    places, numbers = (meta.block_table, meta.query_start, meta.kv_len), (0.2, 0, 3.0)
    for op, arguments in [
        (ops.rms_norm, (x, weight, 1e-5, 1.0)),
        (ops.layer_norm, (x, weight, weight.clone(), 1e-5)),
        (ops.act_and_mul, (x, "gelu")),
        (ops.act, (x, "relu")),
        (ops.softcap, (x, 3.0)),
        (ops.variant_attention, (q, k_cache, v_cache, *places, *numbers, random(2), "v2")),
    ]:
        torch.library.opcheck(op.default, (*arguments, 0), test_utils=["test_schema", "test_faketensor"])
