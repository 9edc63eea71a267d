"""The CUDA kernels after the layers, in the simulator: which rows are finite, and the token of each row.

Tokens are those of the reference. What a draw reads is counted: a row at most four times.
"""

from __future__ import annotations

import math
from itertools import product
from random import Random

import pytest
import torch
from cases import DTYPES, REFERENCE, random
from torch import Tensor

from minillm import SamplingParams
from minillm.ops.sampling import SamplingBatch, noise_key
from minillm.ops.simt import Profile, SimtOps, flavour, flavours, profile, schedule
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


@pytest.fixture(params=flavours())
def simulated(request):
    """The test runs in each flavour; all but "fast" in reversed order, which must not change a result."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


# ---- finite_rows ----------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("size", [1, 7, 8, 33, 4101])
def test_one_broken_number_anywhere_is_found(size, dtype, simulated):
    """Rows of an odd size begin at every alignment; the largest numbers are finite."""
    broken = [math.nan, math.inf, -math.inf]
    columns = sorted({0, 3 % size, size // 2, size - 1})
    logits = random(1 + len(columns) * 3, size, dtype=dtype)
    logits[0] = torch.finfo(dtype).max
    logits[0, size // 2] = torch.finfo(dtype).min
    for row, (column, number) in enumerate(((c, n) for c in columns for n in broken), 1):
        logits[row, column] = number
    found = OPS.finite_rows(logits)
    assert found.tolist() == [True] + [False] * (len(logits) - 1)
    assert torch.equal(found, REFERENCE.finite_rows(logits))
    healthy = random(9, size, dtype=dtype)
    assert OPS.finite_rows(healthy).all()


# ---- sample: the same tokens as the reference ------------------------------------------------------


def logits_of(kind: str, rows: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Rows that are ordinary, that tie, that cluster, that are in order, or that are far apart."""
    x = random(rows, vocab, seed=seed)
    made = {
        "plain": lambda: x * 4,
        "flat": lambda: x / 10,
        "sharp": lambda: x * 20,
        "ties": lambda: (x * 1.5).round(),
        "equal": lambda: torch.zeros_like(x),
        "masked": lambda: (x * 4).masked_fill(x > 0.3, -math.inf).index_fill(1, torch.tensor([0]), 1.0),
        "two values": lambda: torch.where(x > 0, 2.0, -33.0),
        "cluster": lambda: 5 + x * 1e-6,
        "rising": lambda: (x * 4).sort(-1).values,
        "falling": lambda: (x * 4).sort(-1, descending=True).values,
        "two peaks": lambda: torch.full_like(x, -50.0).index_fill(
            1, torch.tensor([vocab // 2, vocab // 3]), 3.0
        ),
        "far from zero": lambda: x * 4 + 1000,
    }[kind]()
    return made.to(dtype)


KINDS = "plain flat sharp ties equal masked cluster rising falling".split()
KINDS += ["two values", "two peaks", "far from zero"]


def random_params(rng: Random, vocab: int) -> SamplingParams:
    """Each filter off, tiny, in the middle, at its end and past it."""
    edges = [0, 0, 1, 2, 5, 50, vocab // 2, vocab - 1, vocab, vocab + 7, rng.randint(1, vocab)]
    return SamplingParams(
        temperature=rng.choice([0.0, 1.0, 1.0, 0.7, 3.0, 0.02, 1e-50, 1e300, rng.uniform(0.01, 2)]),
        top_k=rng.choice(edges),
        top_p=rng.choice([1.0, 1.0, 1e-9, 0.1, 0.5, 0.5, 0.75, 0.9, 0.99, 1 - 1e-12, rng.uniform(0.001, 1)]),
        min_p=rng.choice([0.0, 0.0, 0.0, 1.0, 0.05, 1e-6]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.5, 1e300]),
    )


def random_batch(rng: Random, rows: int, vocab: int) -> SamplingBatch:
    params = [random_params(rng, vocab) for _ in range(rows)]
    seen = [[rng.randrange(vocab) for _ in range(40)] if p.repetition_penalty != 1 else [] for p in params]
    keys = [noise_key(rng.getrandbits(40), 0, row) for row in range(rows)]
    return SamplingBatch(params, keys, seen, max(1, vocab - rng.choice([0, 0, 1, 10])))


def check_tokens(vocabs: list[int], rows: int, seed: int) -> None:
    rng = Random(seed)
    for vocab, kind, dtype in product(vocabs, KINDS, DTYPES):
        batch, logits = (
            random_batch(rng, rows, vocab),
            logits_of(kind, rows, vocab, dtype, rng.getrandbits(30)),
        )
        logits[:, batch.num_token_ids :] = 100  # the tokenizer does not have these ids
        found, expected = OPS.sample(logits, batch).tolist(), REFERENCE.sample(logits, batch).tolist()
        for row, token in enumerate(found):
            assert token == expected[row], f"{vocab} ids, {kind}, {dtype}: {batch.params[row]}"


def test_tokens_equal_the_references():
    """Vocabularies of one id, of a few, and of one slice and one id more."""
    check_tokens([1, 17, 33, 257], 4, 1)
    check_tokens([4097], 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_tokens_equal_the_references_in_the_long_form(seed):
    check_tokens([1, 3, 7, 31, 32, 256, 1000, 4095, 4096, 9000], 12, seed + 100)
    check_tokens([151_936], 1, seed + 200)


def test_tokens_equal_the_references_in_every_flavour_and_order(simulated):
    rng = Random(5)
    for vocab, rows in [(300, 3), (4100, 1)]:
        batch, logits = random_batch(rng, rows, vocab), logits_of("ties", rows, vocab, DTYPES[1])
        expected = REFERENCE.sample(logits, batch).tolist()
        assert OPS.sample(logits, batch).tolist() == expected
        if simulated == "fast":
            for seed in (1, 2):
                with schedule(reverse=seed == 2, seed=seed):
                    assert OPS.sample(logits, batch).tolist() == expected


@pytest.mark.parametrize("vocab", [290, 4100])
def test_a_row_alone_gets_the_token_it_gets_in_a_batch(vocab):
    """Contract C2 and C3: neither the number of rows nor the neighbours matter."""
    batch = random_batch(Random(vocab), 70, vocab)
    logits = logits_of("ties", 70, vocab, torch.float32)
    together = OPS.sample(logits, batch)
    some = list(range(0, 70, 1 if vocab < 4000 else 7))
    alone = [OPS.sample(logits[row : row + 1], batch.rows([row])) for row in some]
    assert torch.equal(together[some], torch.cat(alone))
    assert len(set(together.tolist())) > 20, "control: the rows differ"
    others = torch.arange(69, -1, -1)
    turned = OPS.sample(logits[others], batch.rows(others.tolist()))
    assert torch.equal(turned, together[others])


def test_a_vocabulary_that_has_too_many_slices_is_refused():
    logits = torch.zeros(1, (1 << 21) + 1)
    with pytest.raises(RuntimeError, match="2097153 ids, at most 2097152"):
        OPS.sample(logits, SamplingBatch([SamplingParams()], [1], [[]], logits.shape[1]))


# ---- sample: what it reads ------------------------------------------------------------------------

CUT = [
    {"top_k": 50},
    {"top_p": 0.9},
    {"top_k": 3000, "top_p": 0.5, "min_p": 1e-6, "repetition_penalty": 1.2},
]


def count(logits: Tensor, rows: int = 1, **options: float) -> Profile:
    """The traffic of `rows` draws with these options."""
    vocab = logits.shape[1]
    seen = [list(range(0, vocab, 97)) if "repetition_penalty" in options else []] * rows
    params = [SamplingParams(**options)] * rows  # type: ignore[arg-type]
    batch = SamplingBatch(params, list(range(rows)), seen, vocab)
    with profile() as p:
        OPS.sample(logits.expand(rows, vocab), batch)
    return p


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["f32", "bf16"])
@pytest.mark.parametrize("kind", ["plain", "equal", "cluster", "rising", "falling", "two values"])
def test_a_row_is_read_at_most_four_times(kind, dtype):
    """The logits three times exactly; of the sorted copy, less than the bytes of one more pass."""
    for vocab, options in product([4096, 9000], CUT):
        p, row = count(logits_of(kind, 1, vocab, dtype), **options), vocab * dtype.itemsize
        assert p.tensors["logits"] == (3 * row, 0)
        assert p.tensors["scratch"][0] < row, f"{p.tensors['scratch'][0] / row:.2f} passes"


@pytest.mark.slow
@each_dtype
def test_a_long_row_is_read_at_most_four_times(dtype):
    for kind, options in product(KINDS, CUT):
        p = count(logits_of(kind, 1, 151_936, dtype), **options)
        assert sum(p.tensors[name][0] for name in ("logits", "scratch")) < 4 * 151_936 * dtype.itemsize, kind


@pytest.mark.parametrize("vocab", [1, 17, 100, 300])
def test_a_short_row_costs_two_kilobytes_more(vocab):
    """Of a few ids the search tries nearly all as pivots, each once or twice."""
    for options in CUT:
        p = count(logits_of("plain", 1, vocab, torch.float32), **options)
        is_cut = "top_p" in options or options["top_k"] < vocab
        assert p.tensors["logits"][0] == (12 if is_cut else 8) * vocab
        assert p.tensors["scratch"][0] < 2048


@pytest.mark.parametrize(
    ("options", "passes"), [({"temperature": 0.0}, 1), ({}, 2), ({"min_p": 0.1}, 2), ({"top_k": 9000}, 2)]
)
def test_a_row_without_top_k_and_top_p_is_read_once_or_twice(options, passes):
    """No sort, no search: they read and write nothing."""
    p = count(logits_of("plain", 1, 9000, torch.float32), **options)
    assert p.tensors["logits"] == (passes * 36_000, 0)
    assert p["sort"].global_write_bytes == p["cut"].global_write_bytes == 0
    assert sum(p.tensors["scratch"]) < 1000


def test_slices_share_a_row_whatever_the_number_of_rows():
    """5 launches; 4,096 ids a block."""
    for vocab, slices in [(1, 1), (4096, 1), (4097, 2), (12_289, 4)]:
        for rows in (1, 3):
            p = count(logits_of("plain", 1, vocab, torch.float32), rows, top_k=1)
            assert p.launches == 5
            assert [p[k].blocks for k in ("highest", "sort", "draw")] == [slices * rows] * 3
            assert [p[k].blocks for k in ("cut", "finish")] == [rows] * 2
