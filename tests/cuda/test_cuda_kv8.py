"""A KV cache in 8 bits on the CUDA kernels, in the simulator: what is written, and attention over it.

The oracle attends, in float64, to the numbers that the codes stand for: it judges the kernel and not what the
rounding costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import family_oracle
import oracle
import pytest
import torch
from cases import CASES, DTYPES, REFERENCE, Case, check, make_meta, random
from coded_caches import ROWS, Built, build, empty, raw, views
from torch import Tensor

from minillm.config import KV_DTYPES, LayerSpec
from minillm.ops import kv_codes
from minillm.ops.contract import LayerCache, RopeTables
from minillm.ops.simt import SimtOps, flavour, flavours, profile, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

OPS = SimtOps()
RAGGED = Case([(1, 40), (37, 37), (4, 70), (1, 1), (33, 100)], heads=6, kv_heads=2, dim=64)
GROUPS = [Case([(1, 70), (3, 20)], heads=2 * group, kv_heads=2, dim=32) for group in (4, 8, 9, 11)]


@pytest.fixture(params=flavours())
def simulated(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each flavour of the simulator; `check` finds races. Its blocks and warps run in reversed order."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


def attend(built: Built, case: Case) -> Tensor:
    return OPS.paged_attention(built.q, *built.cache, built.meta, case.dim**-0.5, case.window)


# ---- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KV_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "block_size"), [(4, 16), (20, 3), (64, 16), (256, 32)])
def test_written_codes_are_those_of_the_definition(
    dtype: torch.dtype, dim: int, block_size: int, kind: str
) -> None:
    """The same bytes as `kv_codes.quantize` of the row that a plain cache gets; no other byte changes."""
    case = Case([(5, 9), (1, 40), (0, 3), (17, 17)], heads=6, kv_heads=2, dim=dim, block_size=block_size)
    q, k_cache, _, meta, _ = case.build(dtype)
    k, v = (random(23, 3, dim, dtype=dtype, seed=s)[:, 1:] for s in (7, 8))  # strided
    angles = random(64, dim // 4, scale=3)  # half of each head is rotated
    rope = RopeTables(angles.cos(), angles.sin())
    caches = empty(tuple(k_cache.shape), kind)
    plain = LayerCache(*(torch.zeros_like(k_cache) for _ in range(2)))
    found_q = OPS.rope_and_cache(q, k, v, rope, caches, meta)
    assert torch.equal(found_q, OPS.rope_and_cache(q, k, v, rope, plain, meta))
    place = meta.slot_mapping // block_size, meta.slot_mapping % block_size
    untouched = torch.ones(k_cache.shape[:2], dtype=torch.bool).index_put(place, torch.tensor(False))
    for view, rows in zip(views(OPS, caches), plain, strict=True):
        codes, scales = kv_codes.quantize(rows[place], kv_codes.DTYPES[kind])
        assert torch.equal(raw(view.codes[place]), raw(codes)) and torch.equal(view.scales[place], scales)
        largest = {"int8": 127, "fp8": 448}[kind]
        assert codes.float().abs().amax(-1).eq(largest).all(), "control: each row uses the largest code"
        assert (raw(view.codes[untouched]) == 255).all() and view.scales[untouched].isnan().all()


def written(row: list[float], kind: str) -> tuple[Tensor, Tensor]:
    """Codes [4] and scale of one value row, beside rows of ones and one without a slot."""
    cache = empty((1, 16, 1, 4), kind)
    v = torch.ones(4, 1, 4)
    v[1, 0] = torch.tensor(row)
    rope, meta = RopeTables(torch.ones(9, 0), torch.ones(9, 0)), make_meta([[0]], [4], [4], 16)
    meta.slot_mapping[3] = -1
    OPS.rope_and_cache(torch.ones(4, 1, 4), torch.ones(4, 1, 4), v, rope, cache, meta)
    view = kv_codes.rows(cache.v)
    assert view.codes[0, [0, 2]].float().eq({"int8": 127, "fp8": 448}[kind]).all(), (
        "the neighbours keep their codes"
    )
    assert (raw(view.codes[0, 3:]) == 255).all(), "no slot, no write"
    return view.codes[0, 1, 0], view.scales[0, 1, 0]


@pytest.mark.parametrize("kind", KV_DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_extreme_rows(name: str, kind: str) -> None:
    codes, scale = written(ROWS[name], kind)
    expected, expected_scale = kv_codes.quantize(torch.tensor(ROWS[name]), kv_codes.DTYPES[kind])
    assert torch.equal(raw(codes), raw(expected))
    assert torch.equal(scale, expected_scale) or (scale.isnan() and expected_scale.isnan())


def test_fp8_by_hand() -> None:
    codes, scale = kv_codes.quantize(torch.tensor([ROWS["ties of fp8"]]), torch.float8_e4m3fn)
    assert codes.tolist() == [[448.0, 16.0, 20.0, -0.0]] and scale.tolist() == [1.0]


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_every_rounding(kind: str) -> None:
    """Rows of 256 numbers with the scale 1: halfway between two codes, and beside it."""
    largest = {"int8": 127.0, "fp8": 448.0}[kind]
    codes = torch.arange(256, dtype=torch.uint8).view(kv_codes.DTYPES[kind]).float()
    codes = codes[codes.isfinite() & (codes.abs() <= largest)].unique()
    middle = (codes[1:] + codes[:-1]) / 2
    for x in (middle, middle.nextafter(torch.tensor(1e9)), middle.nextafter(torch.tensor(-1e9)), codes):
        row = torch.zeros(1, 1, 256)
        row[..., : len(x)], row[..., 255] = x, largest
        cache, meta = empty((1, 16, 1, 256), kind), make_meta([[0]], [1], [1], 16)
        rope = RopeTables(torch.ones(9, 0), torch.ones(9, 0))
        OPS.rope_and_cache(row, row, row, rope, cache, meta)
        expected, scale = kv_codes.quantize(row, kv_codes.DTYPES[kind])
        assert scale.item() == 1
        for view in views(OPS, cache):
            assert torch.equal(view.codes[0, :1].float(), expected.float())


# ---- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KV_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_codes(dtype: torch.dtype, kind: str) -> None:
    for case in (*CASES, *GROUPS):
        built = build(OPS, case, dtype, kind)
        lens = [n for n, _ in case.seqs], [n for _, n in case.seqs]
        scores = (case.dim**-0.5, case.window)
        exact = oracle.paged_attention(built.q, *built.numbers, built.tables, *lens, *scores)
        coded = build(REFERENCE, case, dtype, kind)
        reference = REFERENCE.paged_attention(coded.q, *coded.cache, coded.meta, *scores)
        check(attend(built, case), reference, exact, case)


@pytest.mark.parametrize("kind", KV_DTYPES)
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_softcaps_and_sinks(softcap: float | None, with_sinks: bool, kind: str) -> None:
    for dtype, case in zip(DTYPES, (RAGGED, GROUPS[0], Case([(5, 70)], 4, 1, 32, window=17)), strict=True):
        built = build(OPS, case, dtype, kind)
        sinks = random(case.heads, dtype=dtype, seed=9) if with_sinks else None
        spec = LayerSpec(window=case.window, scale=0.2, softcap=softcap, sinks=with_sinks)
        exact = family_oracle.variant_attention(
            case, built.q, *built.numbers, built.tables, 0.2, softcap, sinks
        )
        coded = build(REFERENCE, case, dtype, kind)
        reference = REFERENCE.variant_attention(coded.q, coded.cache, coded.meta, spec, sinks)
        check(OPS.variant_attention(built.q, built.cache, built.meta, spec, sinks), reference, exact)


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_every_number_of_every_code(kind: str) -> None:
    """With one key the output is its value: each code alone, to the bit."""
    cache, codes = empty((1, 16, 1, 256), kind), torch.arange(256, dtype=torch.uint8)
    for view in views(OPS, cache):
        view.codes[0, 0, 0], view.scales[0, 0, 0] = codes.view(kv_codes.DTYPES[kind]), 1
    found = OPS.paged_attention(torch.zeros(1, 1, 256), *cache, make_meta([[0]], [1], [1], 16), 1.0)
    expected = codes.view(kv_codes.DTYPES[kind]).float()
    known = expected.isfinite()  # no row is given a NaN among its codes
    assert known.sum() == (256 if kind == "int8" else 254)
    assert torch.equal(found[0, 0, known], expected[known])


def row_alone(built: Built, case: Case, seq: int, row: int) -> Tensor:
    """One row of a sequence, computed as the last row of a decode step of its own."""
    q_len, kv_len = case.seqs[seq]
    first = sum(n for n, _ in case.seqs[:seq])
    meta = make_meta([built.tables[seq]], [1], [kv_len - q_len + row + 1], case.block_size)
    return attend(built._replace(q=built.q[first + row : first + row + 1], meta=meta), case)[0]


@pytest.mark.parametrize("kind", KV_DTYPES)
@pytest.mark.parametrize(
    ("dtype", "window", "block_size"),
    [(torch.bfloat16, None, 16), (torch.float32, 40, 5), (torch.float16, 40, 32)],
)
def test_a_row_has_the_same_bits_alone(
    dtype: torch.dtype, window: int | None, block_size: int, kind: str
) -> None:
    """Contract C2: blocks of 32 rows and of 8, in a prompt, in a chunk or in decode, beside whatever rows."""
    case = Case(RAGGED.seqs, 6, 2, 64, block_size, window)
    built = build(OPS, case, dtype, kind)
    together, first = attend(built, case), 0
    for seq, (q_len, _) in enumerate(case.seqs):
        for row in range(0, q_len, 5):
            assert torch.equal(together[first + row], row_alone(built, case, seq, row)), (seq, row)
        first += q_len


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_the_first_row_has_the_same_bits_in_every_batch(kind: str) -> None:
    lengths, found = [40, 9, 33, 70, 64, 1, 100, 5, 31, 32], []
    whole = build(OPS, Case([(1, n) for n in lengths], 6, 2, 64), torch.bfloat16, kind)
    for count in (1, 2, 7, 8, 9, 10):
        meta = make_meta(whole.tables[:count], [1] * count, lengths[:count], 16)
        found.append(attend(whole._replace(q=whole.q[:count], meta=meta), RAGGED)[0])
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_the_layout_of_blocks_decides_no_bit() -> None:
    found = []
    for block_size in (16, 64, 1, 7, 24):
        case = Case(RAGGED.seqs, 6, 2, 64, block_size)
        found.append(attend(build(OPS, case, torch.bfloat16), case))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_control_a_scale_for_a_block_depends_on_what_comes_later() -> None:
    """With one scale a block, a later token rounds earlier ones again: the same row gets other bits."""
    case = Case([(1, 10)], heads=2, kv_heads=1, dim=64)
    found = []
    for tokens in (10, 16):
        built = build(OPS, case, torch.float32)
        rows, block = random(16, 64, seed=5) * torch.linspace(1, 3, 16).unsqueeze(1), built.tables[0][0]
        for view in views(OPS, built.cache):
            own, own_scales = kv_codes.quantize(rows)
            view.codes[block, :, 0], view.scales[block, :, 0] = own, own_scales
        expected = attend(built, case)
        for view in views(OPS, built.cache):
            scale = view.scales[block, :tokens].max()
            view.codes[block, :, 0] = (rows / scale).round().clamp(-127, 127).to(torch.int8)
            view.scales[block] = scale
        found.append((expected, attend(built, case)))
    assert torch.equal(found[0][0], found[1][0]), "a scale for each token"
    assert not torch.equal(found[0][1], found[1][1]), "a scale for each block"


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_nan_stays_with_those_who_see_it(kind: str) -> None:
    """A row with NaN makes its own sequence NaN from its position on, and changes no other bit."""
    case = RAGGED
    clean = build(OPS, case, torch.float32, kind)
    expected = attend(clean, case)
    for part in views(OPS, clean.cache):
        before, at = part.scales.clone(), 80  # of the last sequence, whose rows stand at 67 to 99
        part.scales[clean.tables[4][at // 16], at % 16, 0] = math.nan
        found = attend(clean, case)
        first = sum(n for n, _ in case.seqs[:4])
        sees = torch.zeros(len(found), 6, dtype=torch.bool)
        sees[first + at - 67 :, :3] = True  # the heads of kv head 0
        assert found[sees].isnan().all() and torch.equal(found[~sees], expected[~sees])
        part.scales.copy_(before)


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_blocks_are_copied_with_their_scales(kind: str) -> None:
    case = Case([(1, 64)], heads=2, kv_heads=2, dim=64)
    built = build(OPS, case, torch.float32, kind)
    expected, cache = attend(built, case), built.cache
    free = next(b for b in range(len(cache.k)) if b not in built.tables[0])
    OPS.copy_blocks([*cache], torch.tensor([built.tables[0][1]]), torch.tensor([free]))
    cache.k[built.tables[0][1]].view(torch.int8).fill_(-1)
    moved = make_meta([[built.tables[0][0], free, *built.tables[0][2:]]], [1], [64], 16)
    assert torch.equal(attend(built._replace(meta=moved), case), expected)
    assert attend(built, case).isnan().any(), "control: the old block is spoilt"


@pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
@pytest.mark.parametrize("kind", KV_DTYPES)
def test_decode_reads_each_code_and_each_scale_once(kind: str) -> None:
    """For all query heads of a group together: a key takes head_dim + 4 bytes, and its value as many."""
    case = Case([(1, 70), (1, 33), (1, 1)], heads=8, kv_heads=2, dim=64)
    built = build(OPS, case, torch.bfloat16, kind)
    with profile() as p:
        attend(built, case)
    for name in ("k_cache", "v_cache"):
        assert tuple(p.tensors[name]) == ((70 + 33 + 1) * 2 * (64 + 4), 0), name


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_no_race_under_the_simulators_checks(simulated: str, kind: str) -> None:
    """Races, uninitialised reads, accesses outside the tensors; blocks and warps in another order."""
    case = Case([(1, 40), (12, 70), (0, 3)], heads=6, kv_heads=2, dim=32, block_size=5)
    for seqs in (case.seqs, [(1, 40), (1, 70)]):
        own = Case(seqs, 6, 2, 32, 5)
        built = build(OPS, own, torch.bfloat16, kind)
        found = attend(built, own)
        with flavour("fast" if simulated != "asan" else "asan"):
            assert torch.equal(attend(built, own), found)
    k, v = (random(13, 2, 32, dtype=torch.bfloat16, seed=s) for s in (7, 8))
    built, angles = build(OPS, case, torch.bfloat16, kind), random(80, 16)
    OPS.rope_and_cache(built.q, k, v, RopeTables(angles.cos(), angles.sin()), built.cache, built.meta)


# ---- refusals ---------------------------------------------------------------------------------------


def test_refusals() -> None:
    case = Case([(1, 20)], heads=2, kv_heads=1, dim=32)
    built = build(OPS, case, torch.float32)
    with pytest.raises(ValueError, match="q has head_dim 36"):
        attend(built._replace(q=torch.ones(1, 2, 36)), case)
    for rung in ("v1", "v2", "d1"):
        with pytest.raises(RuntimeError, match=f"rung {rung} reads no cache of codes"):
            OPS.paged_attention(built.q, *built.cache, built.meta, 1.0, None, rung=rung)
    op, meta = torch.ops.minillm_simt.paged_attention, built.meta
    sequences = meta.block_table, meta.query_start, meta.kv_len
    with pytest.raises(RuntimeError, match="another dtype"):
        op(
            torch.ones(1, 2, 32),
            built.cache.k,
            built.numbers.v.contiguous(),
            *sequences,
            1.0,
            0,
            "plain",
            0,
            0,
        )
    odd = torch.zeros(4, 16, 1, 10, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="head_dim 6, no multiple of 4"):
        op(torch.ones(1, 2, 6), odd, odd, *sequences, 1.0, 0, "plain", 0, 0)
