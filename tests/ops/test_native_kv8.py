"""A KV cache in int8 on the native kernels: what is written, and attention over it, against float64.

The oracle attends to the numbers that the codes stand for, so it judges the kernel and not what the rounding
costs. Slots that no sequence owns hold the scale NaN.
"""

from __future__ import annotations

import math

import family_oracle
import oracle
import pytest
import torch
from coded_caches import ROWS, Built, build, empty
from native import DTYPES, REFERENCE, Case, check, make_meta, random, threads
from torch import Tensor

from minillm.config import LayerSpec
from minillm.ops import kv_codes
from minillm.ops.contract import LayerCache, RopeTables
from minillm.ops.cpu import CpuOps

CASES = [
    # prompts around the borders of tiles, decode around those of tiles, groups of 16 and blocks
    *(Case([(q, q)], heads=3, kv_heads=1, dim=64) for q in (1, 5, 64, 70)),
    *(Case([(1, kv)], heads=8, kv_heads=1, dim=32) for kv in (2, 15, 16, 17, 63, 64, 65, 257)),
    Case([(1, 40), (0, 20), (37, 37), (4, 70), (0, 0), (1, 1), (70, 100)], heads=9, kv_heads=3, dim=64),
    # groups of 1 to 8 heads: every number of rows of a register tile
    *(Case([(1, 70), (1, 20)], heads=2 * group, kv_heads=2, dim=32) for group in range(1, 9)),
    *(Case([(5, 70), (1, 9)], heads=3, kv_heads=1, dim=dim) for dim in (4, 12, 24, 40, 80, 96, 128, 256)),
    *(
        Case([(7, 71), (1, 130)], heads=4, kv_heads=2, dim=16, block_size=s)
        for s in (1, 3, 5, 8, 32, 64, 100)
    ),
    *(Case([(70, 140), (1, 200), (3, 3)], heads=4, kv_heads=2, dim=16, window=w) for w in (1, 17, 64, 500)),
]
RAGGED = Case([(1, 40), (37, 37), (4, 70), (1, 1), (33, 100)], heads=6, kv_heads=2, dim=64)


def attend(ops: CpuOps, built: Built, case: Case) -> Tensor:
    return ops.paged_attention(built.q, *built.cache, built.meta, case.dim**-0.5, case.window)


# ---- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "block_size"), [(4, 16), (20, 3), (64, 16), (80, 32)])
def test_written_codes_are_those_of_the_definition(
    native_ops: CpuOps, dtype: torch.dtype, dim: int, block_size: int
) -> None:
    """The same bytes as `kv_codes.quantize` of the rotated row; no other byte changes."""
    case = Case([(5, 9), (1, 40), (0, 3), (17, 17)], heads=6, kv_heads=2, dim=dim, block_size=block_size)
    q, k_cache, _, meta, _ = case.build(dtype)
    k, v = (random(23, 3, dim, dtype=dtype, seed=s)[:, 1:] for s in (7, 8))  # strided
    angles = random(64, dim // 2, scale=3)
    rope = RopeTables(angles.cos(), angles.sin())
    caches, plain = empty(tuple(k_cache.shape)), [torch.zeros_like(k_cache) for _ in range(2)]
    found_q = native_ops.rope_and_cache(q, k, v, rope, caches, meta)
    assert torch.equal(found_q, native_ops.rope_and_cache(q, k, v, rope, LayerCache(*plain), meta))
    place = meta.slot_mapping // block_size, meta.slot_mapping % block_size
    untouched = torch.ones(k_cache.shape[:2], dtype=torch.bool).index_put(place, torch.tensor(False))
    for view, rows in zip((kv_codes.columns(caches.k), kv_codes.rows(caches.v)), plain, strict=True):
        codes, scales = kv_codes.quantize(rows[place])
        assert torch.equal(view.codes[place], codes) and torch.equal(view.scales[place], scales)
        assert codes.abs().amax(-1).eq(127).all(), "control: the largest number of each row has the code 127"
        assert (view.codes[untouched] == -1).all() and view.scales[untouched].isnan().all()


def written(ops: CpuOps, row: list[float]) -> tuple[Tensor, Tensor]:
    """Codes [4] and scale of one value row, beside rows of ones."""
    cache = LayerCache(*(torch.zeros(1, 16, 1, 8, dtype=torch.int8) for _ in range(2)))
    v = torch.ones(3, 1, 4)
    v[1, 0] = torch.tensor(row)
    rope, meta = RopeTables(torch.ones(9, 0), torch.ones(9, 0)), make_meta([[0]], [3], [3], 16)
    ops.rope_and_cache(torch.ones(3, 1, 4), torch.ones(3, 1, 4), v, rope, cache, meta)
    view = kv_codes.rows(cache.v)
    assert (view.codes[0, [0, 2]] == 127).all(), "the neighbours keep their codes"
    return view.codes[0, 1, 0], view.scales[0, 1, 0]


@pytest.mark.parametrize("name", ROWS)
def test_extreme_rows(native_ops: CpuOps, name: str) -> None:
    codes, scale = written(native_ops, ROWS[name])
    expected, expected_scale = kv_codes.quantize(torch.tensor(ROWS[name]))
    assert torch.equal(codes, expected)
    assert torch.equal(scale, expected_scale) or (scale.isnan() and expected_scale.isnan())


def test_the_definition_by_hand() -> None:
    codes, scale = kv_codes.quantize(torch.tensor([ROWS["zeros"], ROWS["ties"], ROWS["NaN"]]))
    assert codes.tolist() == [[0, 0, 0, 0], [127, 0, 2, -2], [0, 0, 0, 0]]
    assert scale[:2].tolist() == [0.0, 1.0] and scale[2].isnan()


# ---- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_codes(native_ops: CpuOps, dtype: torch.dtype) -> None:
    for case in CASES:
        built = build(native_ops, case, dtype)
        lens = [n for n, _ in case.seqs], [n for _, n in case.seqs]
        scores = (case.dim**-0.5, case.window)
        exact = oracle.paged_attention(built.q, *built.numbers, built.tables, *lens, *scores)
        reference = REFERENCE.paged_attention(built.q, *built.cache, built.meta, *scores)
        check(attend(native_ops, built, case), reference, exact, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_softcaps_and_sinks(
    native_ops: CpuOps, dtype: torch.dtype, softcap: float | None, with_sinks: bool
) -> None:
    for case in (RAGGED, Case([(5, 70), (1, 9)], heads=4, kv_heads=1, dim=24, window=17)):
        built = build(native_ops, case, dtype)
        sinks = random(case.heads, dtype=dtype, seed=9) if with_sinks else None
        spec = LayerSpec(window=case.window, scale=0.2, softcap=softcap, sinks=with_sinks)
        exact = family_oracle.variant_attention(
            case, built.q, *built.numbers, built.tables, 0.2, softcap, sinks
        )
        reference = REFERENCE.variant_attention(built.q, built.cache, built.meta, spec, sinks)
        check(native_ops.variant_attention(built.q, built.cache, built.meta, spec, sinks), reference, exact)


def row_alone(ops: CpuOps, built: Built, case: Case, seq: int, row: int) -> Tensor:
    """One row of a sequence, computed as the last row of a decode step of its own."""
    q_len, kv_len = case.seqs[seq]
    first = sum(n for n, _ in case.seqs[:seq])
    length = kv_len - q_len + row + 1
    meta = make_meta([built.tables[seq]], [1], [length], case.block_size)
    q = built.q[first + row : first + row + 1]
    return ops.paged_attention(q, *built.cache, meta, case.dim**-0.5, case.window)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("block_size", [16, 5, 32])
def test_a_row_has_the_same_bits_alone(
    native_ops: CpuOps, dtype: torch.dtype, window: int | None, block_size: int
) -> None:
    """Contract C2: in a prompt, in a chunk or in decode, beside whatever rows, on any number of threads."""
    case = Case(RAGGED.seqs, 6, 2, 64, block_size, window)
    built = build(native_ops, case, dtype)
    for count in (1, 3):
        with threads(count):
            together = attend(native_ops, built, case)
            first = 0
            for seq, (q_len, _) in enumerate(case.seqs):
                for row in range(q_len):
                    assert torch.equal(together[first + row], row_alone(native_ops, built, case, seq, row))
                first += q_len


def test_the_layout_of_blocks_decides_no_bit(native_ops: CpuOps) -> None:
    """Groups of 16 that are read in place, and others that are copied first, give the same bits."""
    found = []
    for block_size in (16, 64, 1, 7, 24):
        case = Case(RAGGED.seqs, 6, 2, 64, block_size)
        found.append(attend(native_ops, build(native_ops, case, torch.bfloat16), case))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_nan_stays_with_those_who_see_it(native_ops: CpuOps) -> None:
    """A row with NaN makes its own sequence NaN from its position on, and changes no other bit."""
    case = RAGGED
    clean = build(native_ops, case, torch.float32)
    expected = attend(native_ops, clean, case)
    for part in (kv_codes.columns(clean.cache.k), kv_codes.rows(clean.cache.v)):
        before, at = part.scales.clone(), 80  # of the last sequence, whose rows stand at 67 to 99
        part.scales[clean.tables[4][at // 16], at % 16, 0] = math.nan
        found = attend(native_ops, clean, case)
        first = sum(n for n, _ in case.seqs[:4])
        sees = torch.zeros(len(found), 6, dtype=torch.bool)
        sees[first + at - 67 :, :3] = True  # the heads of kv head 0
        assert found[sees].isnan().all() and torch.equal(found[~sees], expected[~sees])
        part.scales.copy_(before)


def test_blocks_are_copied_with_their_scales(native_ops: CpuOps) -> None:
    case = Case([(1, 64)], heads=2, kv_heads=2, dim=64)
    built = build(native_ops, case, torch.float32)
    expected, cache = attend(native_ops, built, case), built.cache
    free = next(b for b in range(len(cache.k)) if b not in built.tables[0])
    native_ops.copy_blocks([*cache], torch.tensor([built.tables[0][1]]), torch.tensor([free]))
    cache.k[built.tables[0][1]].fill_(-1)
    moved = make_meta([[built.tables[0][0], free, *built.tables[0][2:]]], [1], [64], 16)
    assert torch.equal(attend(native_ops, built._replace(meta=moved), case), expected)
    assert attend(native_ops, built, case).isnan().any(), "control: the old block is spoilt"


# ---- one scale for a block would break C2 -----------------------------------------------------------


def with_one_scale(rows: Tensor, chunks: list[int]) -> Tensor:
    """The codes [num_rows, dim] of a block with one running scale, whose rows come in chunks."""
    codes, scale = torch.zeros(0, rows.shape[1]), torch.zeros(())
    for chunk in rows.split(chunks):
        highest = torch.maximum(scale, chunk.abs().amax() / 127)
        codes = torch.cat([(codes * scale / highest).round(), (chunk / highest).round()])
        scale = highest
    return codes


def test_control_a_scale_for_a_block_depends_on_the_chunks() -> None:
    """With a running scale, the codes of a block depend on later tokens, and on the chunks they came in."""
    rows = random(16, 64) * torch.linspace(1, 3, 16).unsqueeze(1)
    whole, in_parts = with_one_scale(rows, [16]), with_one_scale(rows, [5] * 3 + [1])
    assert not torch.equal(whole, in_parts)
    assert not torch.equal(with_one_scale(rows[:8], [8]), whole[:8])
    own = kv_codes.quantize(rows)
    for parts in ([16], [5, 5, 5, 1]):
        found = [torch.cat(part) for part in zip(*map(kv_codes.quantize, rows.split(parts)), strict=True)]
        assert torch.equal(found[0], own[0]) and torch.equal(found[1], own[1])


# ---- refusals ---------------------------------------------------------------------------------------


def test_refusals(native_ops: CpuOps) -> None:
    """Shapes are refused in Python by name; the ops check what Python does not look at."""
    case = Case([(1, 20)], heads=2, kv_heads=1, dim=8)
    built = build(native_ops, case, torch.float32)
    with pytest.raises(ValueError, match="q has head_dim 12"):
        attend(native_ops, built._replace(q=torch.ones(1, 2, 12)), case)
    op = torch.ops.minillm.paged_attention
    sequences = built.meta.block_table, built.meta.query_start, built.meta.kv_len
    odd = torch.zeros(4, 16, 1, 10, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="head_dim 6, no multiple of 4"):
        op(torch.ones(1, 2, 6), odd, odd, *sequences, 1.0, 0)
    with pytest.raises(RuntimeError, match="another dtype"):
        op(torch.ones(1, 2, 8), built.cache.k, built.numbers.v.contiguous(), *sequences, 1.0, 0)
