"""The ops that families add, on every instruction set: odd sizes, ends of the range, rows alone or not.

Results are compared with float64 formulas and with the reference backend. Contract C2 is checked by
`torch.equal`: a row has the same bits alone, in a batch, at another place, and with one thread or two.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from native import DTYPES, REFERENCE, Case, check, make_meta, random, threads
from torch import Tensor

from minillm.config import Activation, LayerSpec
from minillm.ops.contract import LayerCache, RopeTables
from minillm.ops.cpu import CpuOps

ODD = [1, 17, 33, 257]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * 0.5 * torch.special.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
}


def row_invariant(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The result for each row of `x` depends neither on the other rows nor on the number of threads."""
    together = run(x)
    assert all(torch.equal(run(x[i : i + 1])[0], together[i]) for i in range(0, len(x), 5))
    assert torch.equal(run(x.flip(0)).flip(0), together)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(run(x), together)


# ---- row by row -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(native_ops: CpuOps, activation: Activation, dtype: torch.dtype) -> None:
    exact = ACTIVATIONS[activation]
    for size in ODD:
        x = random(37, 2 * size, dtype=dtype, scale=3)
        gate, up = x.double().chunk(2, -1)
        check(native_ops.act(x, activation), REFERENCE.act(x, activation), exact(x.double()), size)
        found, expected = native_ops.act_and_mul(x, activation), REFERENCE.act_and_mul(x, activation)
        check(found, expected, exact(gate) * up, size)
    row_invariant(lambda rows: native_ops.act(rows, activation), x)
    row_invariant(lambda rows: native_ops.act_and_mul(rows, activation), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamped_swiglu(native_ops: CpuOps, dtype: torch.dtype) -> None:
    for size in ODD:
        x = random(37, 2 * size, dtype=dtype, scale=8)  # many numbers beyond 7
        gate, up = x.double().chunk(2, -1)
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        exact = gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)
        found, expected = (ops.act_and_mul(x, "swiglu_clamped") for ops in (native_ops, REFERENCE))
        check(found, expected, exact, size)
    row_invariant(lambda rows: native_ops.act_and_mul(rows, "swiglu_clamped"), x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_the_ends(native_ops: CpuOps, activation: Activation) -> None:
    ends = torch.tensor([[0.0, -0.0, 100.0, -100.0, 1e30, -1e30, math.inf, 12.0, -12.0, 1e-30, -1e-4]])
    found = native_ops.act(ends, activation)
    assert torch.allclose(found.double(), ACTIVATIONS[activation](ends.double()), rtol=1e-6, atol=1e-6)
    assert native_ops.act(torch.tensor([[math.nan]]), activation).isnan().all()
    nan = torch.tensor([[math.nan, 1.0], [1.0, math.nan]])
    for gate in (activation, "swiglu_clamped"):
        assert native_ops.act_and_mul(nan, gate).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*ODD, 4, 16, 48])
def test_norms_with_an_offset_and_with_a_mean(native_ops: CpuOps, dtype: torch.dtype, size: int) -> None:
    weight, bias = random(size, dtype=dtype, seed=1), random(size, dtype=dtype, seed=2)
    x = random(37, size, dtype=dtype, seed=3) + 3
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (weight.double() + 1)
    check(native_ops.rms_norm(x, weight, 1e-5, 1.0), REFERENCE.rms_norm(x, weight, 1e-5, 1.0), exact)
    away = wide - wide.mean(-1, keepdim=True)
    exact = away / (away.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double()
    normed = native_ops.layer_norm(x, weight, bias, 1e-5)
    if dtype != torch.float32 or size > 1:
        check(normed, REFERENCE.layer_norm(x, weight, bias, 1e-5), exact)
    assert torch.equal(native_ops.rms_norm(x, weight, 1e-5, 0.0), native_ops.rms_norm(x, weight, 1e-5))
    row_invariant(lambda rows: native_ops.rms_norm(rows, weight, 1e-5, 1.0), x)
    row_invariant(lambda rows: native_ops.layer_norm(rows, weight, bias, 1e-5), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softcap(native_ops: CpuOps, dtype: torch.dtype) -> None:
    for size in ODD:
        x = random(37, size, dtype=dtype, scale=40)
        found, expected = native_ops.softcap(x, 30.0), REFERENCE.softcap(x, 30.0)
        check(found, expected, 30 * torch.tanh(x.double() / 30), size)
    row_invariant(lambda rows: native_ops.softcap(rows, 30.0), x)


def test_softcap_keeps_small_numbers_and_their_signs(native_ops: CpuOps) -> None:
    x = torch.tensor([[1e-30, -1e-6, 1e-3, -0.3, 0.62, -0.63, 5.0, -9.0, 1e30, -math.inf, 0.0, -0.0]])
    found = native_ops.softcap(x, 1.0)
    assert torch.allclose(found.double(), torch.tanh(x.double()), rtol=3e-7, atol=0)
    assert torch.equal(found.signbit(), x.signbit())
    assert native_ops.softcap(torch.tensor([[math.nan]]), 1.0).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary", [0, 2, 6, 32, 34, 80])
def test_partial_rope(native_ops: CpuOps, dtype: torch.dtype, rotary: int) -> None:
    """The first components are rotated as a head of that size would be; the others are copied."""
    case = Case([(5, 9), (1, 40)], heads=6, kv_heads=2, dim=80)
    q, k_cache, v_cache, meta, _ = case.build(dtype)
    k, v = (random(6, 3, 80, dtype=dtype, seed=s)[:, 1:] for s in (7, 8))
    angles = random(64, rotary // 2, scale=3)
    rope, cache = RopeTables(angles.cos(), angles.sin()), LayerCache(k_cache, v_cache)
    found = native_ops.rope_and_cache(q, k, v, rope, cache, meta)
    written = k_cache.flatten(0, 1)[meta.slot_mapping]
    assert torch.equal(found[..., rotary:], q[..., rotary:])
    assert torch.equal(written[..., rotary:], k[..., rotary:])
    assert torch.equal(v_cache.flatten(0, 1)[meta.slot_mapping], v)
    if rotary:
        small = LayerCache(*(torch.zeros(*k_cache.shape[:3], rotary, dtype=dtype) for _ in range(2)))
        first = (t[..., :rotary].contiguous() for t in (q, k, v))
        assert torch.equal(native_ops.rope_and_cache(*first, rope, small, meta), found[..., :rotary])
        assert torch.equal(small.k.flatten(0, 1)[meta.slot_mapping], written[..., :rotary])


# ---- attention ------------------------------------------------------------------------------------

CASES = [
    *(Case([(q, q)], heads=3, kv_heads=1, dim=64) for q in (1, 5, 64, 70)),
    *(Case([(1, kv)], heads=8, kv_heads=2, dim=16) for kv in (2, 63, 64, 65, 257)),
    *(Case([(70, 140), (1, 200), (3, 3)], heads=4, kv_heads=2, dim=24, window=w) for w in (1, 17, 64, 500)),
    Case([(1, 40), (0, 20), (37, 37), (4, 70)], heads=6, kv_heads=3, dim=40, block_size=5),
]


def exact_attention(case: Case, q: Tensor, cache: LayerCache, tables: list[list[int]], cap, sinks) -> Tensor:
    """Row by row and head by head, in float64."""
    out, row, group = torch.empty(q.shape, dtype=torch.float64), 0, case.heads // case.kv_heads
    for table, (q_len, kv_len) in zip(tables, case.seqs, strict=True):
        k, v = (t[table].flatten(0, 1)[:kv_len].double() for t in cache)
        for position in range(kv_len - q_len, kv_len):
            first = max(0, position + 1 - (case.window or kv_len))
            for head in range(case.heads):
                seen = slice(first, position + 1), head // group
                scores = k[seen] @ q[row, head].double() * case.dim**-0.5
                scores = scores if cap is None else cap * torch.tanh(scores / cap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head].double().view(1)])
                out[row, head] = scores.softmax(0)[: position + 1 - first] @ v[seen]
            row += 1
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cap", "has_sinks"), [(0.7, False), (None, True), (2.0, True)])
def test_attention_with_cap_and_sinks(
    native_ops: CpuOps, dtype: torch.dtype, cap: float | None, has_sinks: bool
) -> None:
    for case in CASES:
        q, k, v, meta, tables = case.build(dtype)
        sinks = random(case.heads, dtype=dtype, seed=5, scale=2) if has_sinks else None
        spec = LayerSpec(case.window, case.dim**-0.5, softcap=cap, sinks=has_sinks)
        found = native_ops.variant_attention(q, LayerCache(k, v), meta, spec, sinks)
        expected = REFERENCE.variant_attention(q, LayerCache(k, v), meta, spec, sinks)
        check(found, expected, exact_attention(case, q, LayerCache(k, v), tables, cap, sinks), case)
        plain = native_ops.paged_attention(q, k, v, meta, spec.scale, spec.window)
        one_key = 1 in (case.window, case.seqs[0][1])  # a cap does not change the softmax of one score
        assert (one_key and not has_sinks) or not torch.equal(found, plain), "control"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_attention_does_not_depend_on_the_others(native_ops: CpuOps, dtype: torch.dtype) -> None:
    """A row of a prompt has the bits it has in a decode step, when only its keys are in the cache."""
    case = Case([(140, 140)], heads=4, kv_heads=2, dim=24)
    q, k, v, meta, tables = case.build(dtype)
    sinks, spec = random(4, dtype=dtype), LayerSpec(70, 0.3, softcap=1.5, sinks=True)
    prompt = native_ops.variant_attention(q, LayerCache(k, v), meta, spec, sinks)
    for position in (0, 1, 63, 64, 69, 70, 139):
        alone = make_meta(tables, [1], [position + 1], 16)
        row = native_ops.variant_attention(q[position : position + 1], LayerCache(k, v), alone, spec, sinks)
        assert torch.equal(row[0], prompt[position])


def test_a_sink_of_minus_infinity_is_no_sink(native_ops: CpuOps) -> None:
    q, k, v, meta, _ = CASES[0].build(torch.float32)
    spec, none = LayerSpec(None, 0.125, sinks=True), torch.full((3,), -math.inf)
    found = native_ops.variant_attention(q, LayerCache(k, v), meta, spec, none)
    assert torch.equal(found, native_ops.paged_attention(q, k, v, meta, 0.125))
    large = native_ops.variant_attention(q, LayerCache(k, v), meta, spec, torch.full((3,), 200.0))
    assert large.abs().max() < 1e-30, "all of the softmax goes to the sink"


@pytest.mark.parametrize("sink", [math.inf, math.nan])
def test_a_damaged_sink_is_seen_in_the_result(native_ops: CpuOps, sink: float) -> None:
    """As in the softmax of the reference: the request then ends with an error instead of a wrong text."""
    q, k, v, meta, _ = CASES[0].build(torch.float32)
    spec, sinks = LayerSpec(None, 0.125, sinks=True), torch.tensor([0.0, sink, 0.0])
    for ops in (native_ops, REFERENCE):
        found = ops.variant_attention(q, LayerCache(k, v), meta, spec, sinks)
        assert found[:, 1].isnan().all() and found[:, [0, 2]].isfinite().all()
