"""Sampling: the order of the filters, ties, and contract C3: a draw depends only on its key and logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import SamplingParams
from minillm.ops.sampling import (
    SamplingBatch,
    filter_logits,
    gumbel_noise,
    keep_top,
    noise_key,
    penalise_repetition,
    sample,
    token_logprobs,
    uniforms,
)


def draw(logits: torch.Tensor, seeds: list[int], num_ids: int | None = None, seen: Any = None, **params: Any):
    """One draw per row; row i has request seed `seeds[i]`, sample index 0, position 0."""
    rows = len(seeds)
    logits = logits.expand(rows, -1) if logits.dim() == 1 else logits
    batch = SamplingBatch(
        params=[SamplingParams(**params)] * rows,
        keys=[noise_key(seed, 0, 0) for seed in seeds],
        seen=seen or [[]] * rows,
        num_token_ids=num_ids or logits.shape[1],
    )
    return sample(logits, batch).tolist()


def survivors(logits: list[float], **params: Any) -> list[int]:
    kept = filter_logits(torch.tensor(logits), SamplingParams(**params))
    return (kept > -math.inf).nonzero().flatten().tolist()


# ---- filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "params", "kept"),
    [
        ([1.0, 3.0, 2.0], {}, [0, 1, 2]),
        ([1.0, 3.0, 2.0], {"top_k": 2}, [1, 2]),
        ([1.0, 3.0, 2.0], {"top_k": 99}, [0, 1, 2]),
        ([5.0, 5.0, 5.0, 5.0], {"top_k": 2}, [0, 1]),  # ties go to the lowest id
        ([1.0, 5.0, 5.0, 5.0], {"top_k": 2}, [1, 2]),
        ([0.0, 0.0, 0.0, 0.0], {"top_p": 0.5}, [0, 1]),
        ([0.0, 0.0, 0.0, 0.0], {"top_p": 0.51}, [0, 1, 2]),
        ([0.0, 9.0, 0.0], {"top_p": 1e-9}, [1]),  # at least one survives
        # top-p applies to what top-k kept: of (1/2, 1/2) the first alone reaches 0.5, of four it would not
        ([0.0, 0.0, 0.0, 0.0], {"top_k": 2, "top_p": 0.5}, [0]),
        ([0.0, 0.0, 0.0, 0.0], {"min_p": 1.0}, [0, 1, 2, 3]),
        ([math.log(4), math.log(2), 0.0], {"min_p": 0.5}, [0, 1]),
        ([math.log(4), math.log(2), 0.0], {"min_p": 0.51}, [0]),
        # the temperature is applied first: the ratio 1/4 becomes 1/2 before min-p is applied
        ([math.log(4), math.log(2), 0.0], {"min_p": 0.49, "temperature": 2.0}, [0, 1, 2]),
        ([math.log(6), math.log(3), 0.0], {"top_p": 0.6, "temperature": 2.0}, [0, 1]),
        ([math.log(6), math.log(3), 0.0], {"top_p": 0.6, "temperature": 1.0}, [0]),
        ([2.0, -math.inf, 1.0], {"top_p": 0.999999}, [0, 2]),  # masked ids stay out
    ],
)
def test_filters(logits: list[float], params: dict[str, Any], kept: list[int]) -> None:
    assert survivors(logits, **params) == kept


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    st.integers(0, 12),
    st.floats(0.01, 1.0),
)
def test_keep_top_against_the_definition(values: list[float], top_k: int, top_p: float) -> None:
    logits = torch.tensor(values)
    order = sorted(range(len(values)), key=lambda i: (-float(logits[i]), i))[: top_k or None]
    total = sum(math.exp(float(logits[i])) for i in order)
    kept, mass = [], 0.0
    for i in order:
        if mass >= top_p - 1e-9 and kept:
            break
        kept.append(i)
        mass += math.exp(float(logits[i])) / total
    found = (keep_top(logits, top_k, top_p) > -math.inf).nonzero().flatten().tolist()
    rounding = {*kept[-1:], *order[len(kept) : len(kept) + 1]} if abs(mass - top_p) < 1e-6 else set()
    assert set(found) ^ set(kept) <= rounding, "at the border rounding may change one id, not more"


def test_repetition_penalty_lowers_both_signs() -> None:
    logits = torch.tensor([4.0, -4.0, 0.0, 4.0, -math.inf])
    penalised = penalise_repetition(logits, [0, 1, 2, 0, 4], 2.0)
    assert penalised.tolist() == [2.0, -8.0, 0.0, 4.0, -math.inf]
    assert logits.tolist()[0] == 4.0, "the caller's logits are not changed"


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40, 1e300])
def test_extreme_penalties_stay_finite(penalty: float) -> None:
    penalised = penalise_repetition(torch.tensor([4.0, -4.0, 0.0, -math.inf]), [0, 1, 2, 3], penalty)
    assert not penalised.isnan().any() and not (penalised == math.inf).any()


def test_penalty_comes_before_the_temperature_and_after_the_mask() -> None:
    logits = torch.tensor([3.0, 2.0, 9.0])
    assert draw(logits, [0], num_ids=2, temperature=0.0) == [0]
    assert draw(logits, [0], num_ids=2, seen=[[0]], temperature=0.0, repetition_penalty=2.0) == [1]
    assert draw(logits, [0], num_ids=2, seen=[[2]], temperature=0.0, repetition_penalty=0.001) == [0]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e30, 1e39, 1e300])
def test_ids_the_tokenizer_lacks_are_never_drawn(temperature: float) -> None:
    logits = torch.zeros(8)
    logits[5:] = 50.0
    tokens = draw(logits, list(range(300)), num_ids=5, temperature=temperature)
    assert max(tokens) < 5
    assert max(draw(logits, list(range(50)), temperature=1.0)) >= 5, "control: without the mask they are"


# ---- temperature ----------------------------------------------------------------------------------


def test_temperature_zero_is_the_lowest_argmax() -> None:
    logits = torch.tensor([1.0, 7.0, 7.0, 0.0])
    assert set(draw(logits, list(range(50)), temperature=0.0)) == {1}


@pytest.mark.parametrize("temperature", [1e-5, 1e-40, 1e-50, 1e-320])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    assert set(draw(torch.tensor([1.0, 7.0, 6.9, 0.0]), list(range(50)), temperature=temperature)) == {1}


def test_huge_temperatures_are_uniform() -> None:
    counts = torch.bincount(
        torch.tensor(draw(torch.tensor([0.0, 30.0]), list(range(2000)), temperature=1e300))
    )
    assert abs(int(counts[0]) - 1000) < 150


# ---- noise (C3) -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.permutations(range(7)), st.integers(1, 7))
def test_a_draw_does_not_depend_on_the_batch(order: list[int], size: int) -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))
    alone = [draw(logits[i : i + 1], [i])[0] for i in range(7)]
    picked = list(order)[:size]
    assert draw(logits[picked], picked) == [alone[i] for i in picked]


def test_control_a_global_generator_does_depend_on_the_batch() -> None:
    """The same check fails with torch's global generator instead of the key."""
    probs = torch.full((4, 1000), 1e-3)
    torch.manual_seed(0)
    alone = [int(probs[i].multinomial(1)) for i in range(4)]
    torch.manual_seed(0)
    assert [int(probs[i].multinomial(1)) for i in (3, 2, 1, 0)] != alone[::-1]


def test_key_fields_do_not_commute() -> None:
    fields = [(a, b, c, d) for a in range(4) for b in range(4) for c in range(4) for d in range(4)]
    assert len({noise_key(*f) for f in fields}) == len(fields)
    assert noise_key(-1, 0, 0) != noise_key(1, 0, 0) and 0 <= noise_key(2**70, 0, 0) < 2**64


def test_every_bit_of_every_field_is_in_the_key() -> None:
    """Also the bits above 32, and the sign."""
    changed = {
        noise_key(*[value ^ (1 << bit if i == field else 0) for i, value in enumerate((7, 1, 5, 0))])
        for field in range(4)
        for bit in range(64)
    }
    assert len(changed | {noise_key(7, 1, 5, 0), noise_key(-7, 1, 5, 0)}) == 4 * 64 + 2


def test_noise_is_inside_the_open_interval_and_independent() -> None:
    keys = [noise_key(seed, 0, 0) for seed in range(40)]
    u = uniforms(keys, 5000)
    assert u.dtype == torch.float64 and float(u.min()) > 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.005 and abs(float(u.var()) - 1 / 12) < 0.002
    correlation = torch.corrcoef(u)[0, 1:].abs().max()
    assert float(correlation) < 0.06, "rows of neighbouring seeds are unrelated"
    assert gumbel_noise(keys, 5000).isfinite().all()


def test_noise_of_an_id_does_not_depend_on_the_vocabulary() -> None:
    assert torch.equal(uniforms([noise_key(1, 2, 3)], 10)[0], uniforms([noise_key(1, 2, 3)], 999)[0, :10])


def test_uniforms_equal_splitmix64_in_plain_integers() -> None:
    """The arithmetic on signed int64 tensors equals the definition in Python integers."""
    key, mask = noise_key(7, 0, 3), (1 << 64) - 1
    for j, value in enumerate(uniforms([key], 50)[0].tolist()):
        x = (key + (j + 1) * 0x9E3779B97F4A7C15) & mask
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        assert value == ((x ^ (x >> 31)) // 4096 + 0.5) / 2**52


# ---- distribution ---------------------------------------------------------------------------------

DRAWS = 20_000


def p_value(tokens: list[int], expected: torch.Tensor) -> float:
    stats = pytest.importorskip("scipy.stats")
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    inside = expected > 0
    assert int(counts[~inside].sum()) == 0, "an id that was filtered out was drawn"
    return float(stats.chisquare(counts[inside].numpy(), (expected[inside] * len(tokens)).numpy()).pvalue)


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8, "temperature": 1.5}, {"min_p": 0.2, "top_k": 8}],
    ids=str,
)
def test_draws_follow_the_filtered_softmax(params: dict[str, Any]) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(5)) * 0.8
    tokens = [
        t for start in range(0, DRAWS, 2000) for t in draw(logits, list(range(start, start + 2000)), **params)
    ]
    expected = filter_logits(logits, SamplingParams(**params)).double().softmax(-1)
    assert int((expected > 0).sum()) >= 3
    assert p_value(tokens, expected) > 1e-4
    wrong = expected.pow(1.15)
    assert p_value(tokens, wrong / wrong.sum()) < 1e-4, "control: 15 % sharper is noticed"


def test_positions_and_samples_are_independent_draws() -> None:
    """The draws over the positions of one request, and over its samples, follow the softmax too."""
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    for keys in ([noise_key(9, 0, p) for p in range(8000)], [noise_key(9, i, 0) for i in range(8000)]):
        batch = SamplingBatch([SamplingParams()] * 8000, keys, [[]] * 8000, 4)
        assert p_value(sample(logits.expand(8000, -1), batch).tolist(), logits.double().softmax(-1)) > 1e-4


# ---- logprobs -------------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0, -2.0], [0.0, 0.0, 0.0, 9.0]], dtype=torch.bfloat16)
    found = token_logprobs(logits, torch.tensor([3, 3]), [2, 0])
    raw = logits.float().log_softmax(-1)
    assert list(found[0]) == [3, 1, 2], "the sampled id first, then by likelihood, ties by id"
    assert all(value == float(raw[0, i]) for i, value in found[0].items())
    assert found[1] == {3: float(raw[1, 3])}
    assert len(token_logprobs(logits, torch.tensor([1, 1]), [99, 1])[0]) == 4
