"""The native kernels, op by op, with every instruction set: odd shapes, caches full of NaN, bad input."""

from __future__ import annotations

import math
from itertools import product

import oracle
import pytest
import torch
from native import DTYPES, REFERENCE, Case, check, make_meta, random

from minillm.ops.contract import LayerCache, RopeTables
from minillm.ops.cpu import CpuOps
from minillm.ops.device_memory import free_memory
from minillm.ops.sampling import SamplingBatch

ODD = [1, 17, 33, 257]


@pytest.mark.parametrize("dtype", DTYPES)
def test_control_the_rule_notices_small_mistakes(dtype: torch.dtype) -> None:
    """`check` refuses a result with one row in eight wrong by an eighth, or with NaN."""
    exact = random(64, 64).double()
    rounded = exact.to(dtype)
    check(rounded, rounded, exact)
    for wrong in (rounded * torch.cat([torch.full((8, 1), 1.125), torch.ones(56, 1)]), rounded * math.nan):
        with pytest.raises(AssertionError):
            check(wrong.to(dtype), rounded, exact)


# ---- matrices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(native_ops: CpuOps, dtype: torch.dtype) -> None:
    """Every shape of tile, widths that are no multiple of 16, odd numbers of inputs."""
    for n, (out, size) in enumerate(product([1, 16, 17, 33, 130, 257], [1, 2, 17, 33, 64, 257])):
        weight = random(out, size, dtype=dtype, seed=n)
        bias = random(out, dtype=dtype, seed=n + 1) if n % 2 else None
        for prepared in (weight, native_ops.prepare_weight(weight.clone())):
            for rows in [1, 2, 3, 5, 8, 12, 13, 37, 64, 70]:
                x = random(rows, size, dtype=dtype, seed=rows)
                found = native_ops.linear(x, prepared, bias)
                what = f"{rows} x {size} -> {out}, bias {bias is not None}"
                check(found, REFERENCE.linear(x, weight, bias), oracle.linear(x, weight, bias), what)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "size"), [(1, 1), (17, 33), (32, 64), (257, 6)])
def test_embedding_reads_the_packed_layout(
    native_ops: CpuOps, dtype: torch.dtype, out: int, size: int
) -> None:
    weight = random(out, size, dtype=dtype)
    ids = torch.tensor([0, out - 1, out // 2, 0])
    for prepared in (weight, native_ops.prepare_weight(weight.clone())):
        assert torch.equal(native_ops.embedding(ids, prepared), weight[ids])


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_in_place_takes_no_memory(native_ops: CpuOps, dtype: torch.dtype) -> None:
    weight = random(48, 10, dtype=dtype)
    expected, place = weight.clone(), weight.data_ptr()
    packed = native_ops.prepare_weight(weight)
    assert packed.data.data_ptr() == place
    assert packed.shape == (48, 10)
    assert torch.equal(native_ops.embedding(torch.arange(48), packed), expected)
    assert not torch.equal(weight, expected), "control: the matrix has really been reordered"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "size"), [(1, 1), (17, 33), (32, 64), (257, 6)])
def test_unpacking_gives_the_matrix_back(native_ops: CpuOps, dtype: torch.dtype, out: int, size: int) -> None:
    weight = random(out, size, dtype=dtype)
    unpacked = native_ops.unpack_weight(native_ops.prepare_weight(weight.clone()))
    assert torch.equal(unpacked, weight) and unpacked.is_contiguous()
    assert native_ops.unpack_weight(weight) is weight
    assert REFERENCE.unpack_weight(REFERENCE.prepare_weight(weight)) is weight


# ---- row by row -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*ODD, 4, 16, 48])
def test_norms(native_ops: CpuOps, dtype: torch.dtype, size: int) -> None:
    weight = random(size, dtype=dtype, seed=1)
    for rows in ODD:
        x, residual = random(rows, size, dtype=dtype, seed=2), random(rows, size, dtype=dtype, seed=3)
        exact = oracle.rms_norm(x, weight, 1e-5)
        check(native_ops.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5), exact)
        normed, total = native_ops.add_rms_norm(x, residual, weight, 1e-5)
        assert torch.equal(total, x + residual)
        expected = REFERENCE.add_rms_norm(x, residual, weight, 1e-5)[0]
        check(normed, expected, oracle.rms_norm(total, weight, 1e-5), f"{rows} rows")
    heads = random(3, 5, size, dtype=dtype)  # each head is normalised separately
    exact = oracle.rms_norm(heads, weight, 1e-5)
    check(native_ops.rms_norm(heads, weight, 1e-5), REFERENCE.rms_norm(heads, weight, 1e-5), exact)


def test_norm_of_zeros_and_of_large_numbers(native_ops: CpuOps) -> None:
    assert torch.equal(native_ops.rms_norm(torch.zeros(2, 17), torch.ones(17), 1e-5), torch.zeros(2, 17))
    large = random(2, 17, scale=1e15)
    check(
        native_ops.rms_norm(large, torch.ones(17), 1e-5), large, oracle.rms_norm(large, torch.ones(17), 1e-5)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ODD)
def test_silu_mul(native_ops: CpuOps, dtype: torch.dtype, size: int) -> None:
    for rows in ODD:
        x = random(rows, 2 * size, dtype=dtype, scale=4)
        check(native_ops.act_and_mul(x), REFERENCE.act_and_mul(x), oracle.silu_mul(x), f"{rows} x {size}")


def test_silu_at_the_ends(native_ops: CpuOps) -> None:
    gate = torch.tensor([[0.0, -0.0, 100.0, -100.0, 1e30, -1e30, math.inf, 88.0, -88.0]])
    exact = oracle.silu_mul(torch.cat([gate, torch.ones_like(gate)], -1))
    found = native_ops.act_and_mul(torch.cat([gate, torch.ones_like(gate)], -1))
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-36)
    assert native_ops.act_and_mul(torch.tensor([[math.nan, 1.0]])).isnan().all()


# ---- attention ------------------------------------------------------------------------------------


CASES = [
    # prompts: q_len around the borders of tiles
    *(Case([(q, q)], heads=3, kv_heads=1, dim=64) for q in (1, 5, 37, 64, 70, 128)),
    # decode, at and around the borders of tiles and blocks
    *(Case([(1, kv)], heads=8, kv_heads=1, dim=16) for kv in (2, 16, 17, 63, 64, 65, 257)),
    # chunks after cached keys
    *(Case([(5, kv)], heads=2, kv_heads=2, dim=32) for kv in (33, 64, 69, 131)),
    # verification with prompts and decodes in one batch; sequences without rows; groups of 3
    Case([(1, 40), (0, 20), (37, 37), (4, 70), (0, 0), (1, 1), (70, 100)], heads=9, kv_heads=3, dim=64),
    # head sizes smaller than a register, not a multiple of one, and larger
    *(Case([(5, 70), (1, 9)], heads=3, kv_heads=1, dim=dim) for dim in (2, 6, 8, 24, 40, 80, 96, 128, 256)),
    # block sizes
    *(
        Case([(7, 71), (1, 130)], heads=4, kv_heads=2, dim=16, block_size=size)
        for size in (1, 2, 3, 5, 32, 64, 100, 256)
    ),
    # windows, shorter and longer than a tile
    *(
        Case([(70, 140), (1, 200), (3, 3)], heads=4, kv_heads=2, dim=16, window=w)
        for w in (1, 2, 17, 64, 65, 500)
    ),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_paged_attention(native_ops: CpuOps, dtype: torch.dtype) -> None:
    for case in CASES:
        q, k_cache, v_cache, meta, tables = case.build(dtype)
        found = native_ops.paged_attention(q, k_cache, v_cache, meta, case.dim**-0.5, case.window)
        reference = REFERENCE.paged_attention(q, k_cache, v_cache, meta, case.dim**-0.5, case.window)
        lens = [n for n, _ in case.seqs], [n for _, n in case.seqs]
        exact = oracle.paged_attention(q, k_cache, v_cache, tables, *lens, case.dim**-0.5, case.window)
        check(found, reference, exact, case)


def test_large_scores_do_not_overflow(native_ops: CpuOps) -> None:
    case = Case([(70, 70)], heads=2, kv_heads=1, dim=16)
    q, k_cache, v_cache, meta, tables = case.build(torch.float32)
    exact = oracle.paged_attention(q, k_cache, v_cache, tables, [70], [70], 300.0, None)
    found = native_ops.paged_attention(q, k_cache, v_cache, meta, 300.0)
    assert (
        oracle.error(found, exact) < 1e-3
    )  # scores of 1,000 have errors of 1e-4, and e^x makes that relative


@pytest.mark.parametrize("slot", ["first", "later"])
def test_control_a_nan_in_an_owned_slot_is_seen(native_ops: CpuOps, slot: str) -> None:
    """A NaN that is read shows in the result; otherwise the caches full of NaN would prove nothing."""
    case = Case([(2, 70)], heads=2, kv_heads=1, dim=16)
    q, k_cache, v_cache, meta, tables = case.build(torch.float32)
    v_cache[tables[0][0 if slot == "first" else 4], 0] = math.nan
    assert native_ops.paged_attention(q, k_cache, v_cache, meta, 0.25).isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [2, 6, 16, 34, 64, 80, 128])
def test_rope_and_cache(native_ops: CpuOps, dtype: torch.dtype, dim: int) -> None:
    case = Case([(5, 9), (1, 40), (0, 3), (17, 17)], heads=6, kv_heads=2, dim=dim)
    q, k_cache, v_cache, meta, _ = case.build(dtype)
    before = [k_cache.clone(), v_cache.clone()]
    k, v = (random(23, 3, dim, dtype=dtype, seed=s)[:, 1:] for s in (7, 8))  # strided
    angles = random(64, dim // 2, scale=3)
    rope = RopeTables(angles.cos(), angles.sin())
    found = native_ops.rope_and_cache(q, k, v, rope, LayerCache(k_cache, v_cache), meta)
    at = [table[meta.positions] for table in rope]
    references = [torch.empty_like(t) for t in before]
    expected_q = REFERENCE.rope_and_cache(q, k, v, rope, LayerCache(*references), meta)
    check(found, expected_q, oracle.rope(q, *at), "q")
    written = k_cache.flatten(0, 1)[meta.slot_mapping]
    check(written, references[0].flatten(0, 1)[meta.slot_mapping], oracle.rope(k, *at), "k")
    assert torch.equal(v_cache.flatten(0, 1)[meta.slot_mapping], v)
    for cache, old in zip((k_cache, v_cache), before, strict=True):
        others = torch.ones(len(cache) * 16, dtype=torch.bool).index_fill_(0, meta.slot_mapping, False)
        assert torch.equal(cache.flatten(0, 1)[others].nan_to_num(), old.flatten(0, 1)[others].nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_blocks(native_ops: CpuOps, dtype: torch.dtype) -> None:
    caches = [random(7, 3, 2, 5, dtype=dtype, seed=s) for s in range(3)]
    expected = [cache.clone() for cache in caches]
    source, destination = torch.tensor([6, 0, 2]), torch.tensor([1, 5, 2])
    REFERENCE.copy_blocks(expected, source, destination)
    native_ops.copy_blocks(caches, source, destination)
    assert all(torch.equal(a, b) for a, b in zip(caches, expected, strict=True))


# ---- no rows, and very large caches ---------------------------------------------------------------


def test_no_rows_at_all(native_ops: CpuOps) -> None:
    none = torch.empty(0, 32)
    packed = native_ops.prepare_weight(random(16, 32))
    assert native_ops.linear(none, packed).shape == (0, 16)
    assert native_ops.embedding(torch.empty(0, dtype=torch.int64), packed).shape == (0, 32)
    assert native_ops.rms_norm(none, torch.ones(32), 1e-5).shape == (0, 32)
    assert [t.shape for t in native_ops.add_rms_norm(none, none, torch.ones(32), 1e-5)] == [(0, 32), (0, 32)]
    assert native_ops.act_and_mul(none).shape == (0, 16)
    for seqs in ([], [(0, 5), (0, 0)]):
        case = Case(seqs, heads=2, kv_heads=1, dim=8)
        q, k_cache, v_cache, meta, _ = case.build(torch.float32)
        assert native_ops.paged_attention(q, k_cache, v_cache, meta, 1.0).shape == (0, 2, 8)
        kv, rope = torch.empty(0, 1, 8), RopeTables(*[torch.ones(9, 4)] * 2)
        cache = LayerCache(k_cache, v_cache)
        assert native_ops.rope_and_cache(q, kv, kv, rope, cache, meta).shape == (0, 2, 8)
    native_ops.copy_blocks([torch.ones(2, 3)], *[torch.empty(0, dtype=torch.int64)] * 2)
    batch = SamplingBatch(params=[], keys=[], seen=[], num_token_ids=5)
    assert native_ops.sample(torch.empty(0, 5), batch).shape == (0,)
    assert native_ops.token_logprobs(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), []) == []


def test_indices_beyond_two_to_the_31(native_ops: CpuOps) -> None:
    """Caches whose last blocks lie beyond 2^31 elements; the other blocks are never touched."""
    heads, dim, block_size = 8, 128, 16
    num_blocks = 2**31 // (block_size * heads * dim) + 8
    needed = 2 * num_blocks * block_size * heads * dim * 2
    if free_memory(torch.device("cpu")) < needed + (1 << 30):
        pytest.skip(f"needs {needed >> 30} GiB of address space that could be memory")
    shape = (num_blocks, block_size, heads, dim)
    k_cache, v_cache = (torch.empty(shape, dtype=torch.bfloat16) for _ in range(2))
    case = Case([(20, 20)], heads=8, kv_heads=8, dim=dim)
    q, k_small, v_small, _, _ = case.build(torch.bfloat16)
    k, v = (random(20, heads, dim, dtype=torch.bfloat16, seed=s) for s in (7, 8))
    cos, sin = torch.ones(32, dim // 2), torch.zeros(32, dim // 2)
    results = []
    for caches, table in (
        ((k_small, v_small), [1, 0]),
        ((k_cache, v_cache), [num_blocks - 1, num_blocks - 3]),
    ):
        meta = make_meta([table], [20], [20], block_size)
        turned = native_ops.rope_and_cache(q, k, v, RopeTables(cos, sin), LayerCache(*caches), meta)
        results.append(native_ops.paged_attention(turned, *caches, meta, 0.1))
    assert torch.equal(*results)
    native_ops.copy_blocks([k_cache], torch.tensor([num_blocks - 1]), torch.tensor([num_blocks - 2]))
    assert torch.equal(k_cache[num_blocks - 2], k_cache[num_blocks - 1])
    assert k_cache[num_blocks - 1].count_nonzero() > 0
