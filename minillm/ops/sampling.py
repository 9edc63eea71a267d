"""From logits to a token: a pure function of the logits and four integers.

    id mask -> repetition penalty -> temperature -> top-k -> top-p -> min-p -> + Gumbel noise -> argmax

Adding independent Gumbel noise to log-probabilities and taking the argmax draws from the softmax
(the Gumbel-max trick). The noise of a token id is computed, not drawn: it is a hash of (request
seed, sample index, output position, token id), so there is no generator whose state could depend
on who else is in the batch (contract C3). Two samplers given the same key add the same noise,
which is what coupled speculative decoding will rest on.

Ties always go to the lowest id. Temperature 0 is the argmax after mask and penalty.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011) for counter-based
generators; the mixing function is SplitMix64's (Steele et al., OOPSLA 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops.columns import column

# What a draw is for. Rejection sampling needs more than the one of coupled sampling.
DRAW, ACCEPT, REPLACE, DRAFT = range(4)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MUL_1 = 0xBF58476D1CE4E5B9
_MUL_2 = 0x94D049BB133111EB
NEG_INF = float("-inf")


def mix64(x: int) -> int:
    """SplitMix64's finaliser: 64 bits in, 64 well-mixed bits out."""
    x = (x ^ (x >> 30)) * _MUL_1 & _MASK
    x = (x ^ (x >> 27)) * _MUL_2 & _MASK
    return x ^ (x >> 31)


def noise_key(seed: int, index: int, position: int, purpose: int = 0) -> int:
    """The key of one draw: request seed, sample index (`n > 1`), output position, purpose.

    Each field is mixed in before the next, so (1, 0) and (0, 1) have unrelated keys.
    """
    key = 0
    for value in (seed, index, position, purpose):
        key = mix64((key + _GOLDEN + (value & _MASK)) & _MASK)
    return key


def as_int64(x: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer (torch multiplies int64, wrapping)."""
    return x - (1 << 64) if x >> 63 else x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(keys: Sequence[int], count: int, device: torch.device | None = None) -> Tensor:
    """`count` numbers in (0, 1) for each key: float64 [len(keys), count], element j hashed from j."""
    base = torch.tensor([as_int64(k) for k in keys], dtype=torch.int64, device=device).unsqueeze(1)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=device) * as_int64(_GOLDEN)
    x = base + counter
    x = (x ^ _shift_right(x, 30)) * as_int64(_MUL_1)
    x = (x ^ _shift_right(x, 27)) * as_int64(_MUL_2)
    x = x ^ _shift_right(x, 31)
    # 52 bits and the half fit a double exactly; one bit more would round the largest up to 1.
    return (_shift_right(x, 12).double() + 0.5) * 2.0**-52


def gumbel_noise(keys: Sequence[int], vocab_size: int, device: torch.device | None = None) -> Tensor:
    """Standard Gumbel noise for every token id: float64 [len(keys), vocab_size]."""
    return -torch.log(-torch.log(uniforms(keys, vocab_size, device)))


class Filters(Protocol):
    """How one row is drawn from: `SamplingParams`, or the `SamplingFilters` that the engine makes of them."""

    @property
    def temperature(self) -> float:
        """0 is greedy."""

    @property
    def top_k(self) -> int:
        """0 keeps all ids."""

    @property
    def top_p(self) -> float:
        """1 keeps all ids."""

    @property
    def min_p(self) -> float:
        """0 keeps all ids."""

    @property
    def repetition_penalty(self) -> float:
        """1 changes nothing."""


@dataclass(frozen=True)
class SamplingBatch:
    """What the sampler needs beside the logits, one entry per row.

    `keys` are `noise_key`s; `seen[i]` are the token ids (prompt and output) the repetition penalty
    looks at, empty where it is off. Ids at or above `num_token_ids` do not exist in the tokenizer.
    """

    params: Sequence[Filters]
    keys: Sequence[int]
    seen: Sequence[Sequence[int]]
    num_token_ids: int

    def rows(self, rows: Sequence[int]) -> SamplingBatch:
        """These rows alone."""
        return SamplingBatch(
            [self.params[row] for row in rows],
            [self.keys[row] for row in rows],
            [self.seen[row] for row in rows],
            self.num_token_ids,
        )

    def tensors(self, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The batch as kernels read it.

        Returns:
            keys int64 [num_rows]; float64 [num_rows, 4] of temperature, top_p, min_p and repetition
            penalty; top_k int64 [num_rows]; the seen ids of all rows, each once in its row, end to end;
            int64 [num_rows], where each row's seen ids end.
        """
        keys = column(map(as_int64, self.keys), torch.int64, device)
        return keys, *self.filters(device), *self._seen_columns(device)

    def filters(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """The second and third of `tensors`, which do not depend on the position."""
        return _filter_columns(tuple(self.params), device)

    def _seen_columns(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        if not any(self.seen):
            return _nothing_seen(len(self.params), device)
        seen, ends = list[int](), list[int]()
        for params, ids in zip(self.params, self.seen, strict=True):
            seen += set(ids) if params.repetition_penalty != 1.0 else ()
            ends.append(len(seen))
        return column(seen, torch.int64, device), column(ends, torch.int64, device)


# The same sequences decode for many steps: what depends on their parameters alone is made once.
@lru_cache(maxsize=64)
def _filter_columns(params: tuple[Filters, ...], device: torch.device | None) -> tuple[Tensor, Tensor]:
    numbers = [x for p in params for x in (p.temperature, p.top_p, p.min_p, p.repetition_penalty)]
    return (
        column(numbers, torch.float64, device).view(-1, 4),
        column([p.top_k for p in params], torch.int64, device),
    )


@lru_cache(maxsize=64)
def _nothing_seen(count: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
    return column([], torch.int64, device), column([0] * count, torch.int64, device)


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Draw one token id per row.

    Args:
        logits: [num_rows, vocab_size], any float dtype; not changed.
        batch: sampling parameters and noise keys, `num_rows` of each.

    Returns:
        int64 [num_rows].
    """
    return scores(logits, batch).argmax(dim=-1)


def best_tokens(logits: Tensor, batch: SamplingBatch, count: int) -> Tensor:
    """The `count` ids that come first under each row's own noise: int64 [num_rows, count].

    The first is what `sample` draws; the others are what a drafter offers beside it.
    """
    return scores(logits, batch).sort(dim=-1, descending=True, stable=True).indices[:, :count]


def scores(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """What the argmax is taken of: float64 [num_rows, vocab_size], filtered and with the row's noise.

    Rows of temperature 0 have neither filters nor noise. Arguments as for `sample`.
    """
    result = masked(logits, batch).double()
    drawn = [row for row, params in enumerate(batch.params) if params.temperature > 0]
    if drawn:
        filtered = torch.stack([filter_logits(result[row].float(), batch.params[row]) for row in drawn])
        noise = gumbel_noise([batch.keys[row] for row in drawn], logits.shape[1], logits.device)
        result[torch.tensor(drawn, device=logits.device)] = filtered.double() + noise
    return result


def probabilities(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The distribution each row is drawn from: float32 [num_rows, vocab_size].

    All on one id at temperature 0. Arguments as for `sample`; the keys are not looked at.
    """
    rows = []
    for row, params in zip(masked(logits, batch), batch.params, strict=True):
        if params.temperature > 0:
            rows.append(filter_logits(row, params).softmax(dim=-1))
        else:
            rows.append(torch.zeros_like(row).index_fill_(0, row.argmax(), 1.0))
    return torch.stack(rows)


def masked(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Float32 [num_rows, vocab_size] with ids the tokenizer lacks at -inf, repeated ones penalised."""
    logits = logits.float().clone()
    logits[:, batch.num_token_ids :] = NEG_INF
    for row, (params, seen) in enumerate(zip(batch.params, batch.seen, strict=True)):
        if params.repetition_penalty != 1.0:
            logits[row] = penalise_repetition(logits[row], seen, params.repetition_penalty)
    return logits


def penalise_repetition(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Make ids already in prompt or output less likely: positive logits / penalty, negative * penalty.

    Args:
        logits: float32 [vocab_size].
        seen: token ids that occurred; how often does not matter.
        penalty: above 1 discourages, below 1 encourages.

    Source: Keskar et al., "CTRL" (arXiv 1909.05858).
    """
    ids = torch.tensor(sorted(set(seen)), dtype=torch.int64, device=logits.device)
    penalty = _moderate(penalty)
    picked = logits[ids]
    return logits.index_copy(0, ids, torch.where(picked > 0, picked / penalty, picked * penalty))


def _moderate(divisor: float) -> float:
    """`divisor` kept where float32 divides by it and multiplies with it without making 0 or inf of it.

    A valid temperature of 1e-50 would be 0 in float32, and 0 / 0 is NaN.
    """
    return min(max(divisor, 1e-20), 1e20)


def filter_logits(logits: Tensor, params: Filters) -> Tensor:
    """Temperature, then top-k, top-p and min-p: excluded ids become -inf.

    Args:
        logits: float32 [vocab_size], masked and penalised.
        params: temperature above 0.

    Returns:
        float32 [vocab_size]; at least the most likely id survives.
    """
    # Subtracting the maximum first keeps a tiny temperature from overflowing to inf - inf.
    scaled = (logits - logits.max()) / _moderate(params.temperature)
    if params.top_k or params.top_p < 1.0:
        scaled = keep_top(scaled, params.top_k, params.top_p)
    if params.min_p > 0.0:
        # p >= min_p * p_max, and the maximum is exp(0) / sum: the sum cancels, and no exp is needed.
        scaled = torch.where(scaled >= torch.tensor(math.log(params.min_p)), scaled, NEG_INF)
    return scaled


def keep_top(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` most likely ids, then the fewest of them whose probability reaches `top_p`.

    Args:
        logits: float32 [vocab_size].
        top_k: 0 keeps all.
        top_p: the nucleus, in (0, 1], of the probability that top-k has left.

    Returns:
        float32 [vocab_size] with -inf at every id that is dropped.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751).
    """
    # Stable, so that among equal logits the lowest id comes first and is kept first.
    ordered, ids = logits.sort(descending=True, stable=True)
    if top_k:
        ordered[top_k:] = NEG_INF
    if top_p < 1.0:
        # Not normalised: then equal logits add up to whole numbers, and a tie at the border is exact.
        mass = (ordered.double() - ordered[0]).exp()
        before = F.pad(mass.cumsum(dim=-1)[:-1], (1, 0))
        ordered[before >= top_p * mass.sum()] = NEG_INF
    return torch.empty_like(logits).index_copy_(0, ids, ordered)


def finite_rows(logits: Tensor) -> Tensor:
    """Whether each row of `logits` [num_rows, vocab_size] is free of NaN and infinity: bool [num_rows].

    Only the largest magnitude of a row is asked; NaN is larger than anything.
    """
    return logits.abs().amax(dim=-1).isfinite()


def token_logprobs(logits: Tensor, token_ids: Tensor, tops: Sequence[int]) -> list[dict[int, float]]:
    """Log-probabilities under the raw logits: each row's sampled id, then its likeliest ids.

    Args:
        logits: [num_rows, vocab_size], before any mask, penalty or temperature.
        token_ids: int64 [num_rows].
        tops: how many of the likeliest ids each row reports.

    Returns:
        One `{token id: log-probability}` per row, the sampled id first, then by likelihood.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    best, best_ids = logprobs.sort(dim=-1, descending=True, stable=True)
    rows = []
    for row, (token_id, top) in enumerate(zip(token_ids.tolist(), tops, strict=True)):
        ranked = zip(best_ids[row, :top].tolist(), best[row, :top].tolist(), strict=True)
        rows.append({token_id: float(logprobs[row, token_id])} | dict(ranked))
    return rows
