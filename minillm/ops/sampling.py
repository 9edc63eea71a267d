"""From logits to a token: a pure function of the logits and four integers.

    id mask -> repetition penalty -> temperature -> top-k -> top-p -> min-p -> + Gumbel noise -> argmax

The argmax of log-probabilities plus independent Gumbel noise is a draw from the softmax (the Gumbel-max
trick). The noise of a token id is a hash of (request seed, sample index, output position, token id). There is
no random generator whose state could depend on the other requests of the batch (contract C3). Two samplers
with the same key add the same noise; coupled speculative decoding uses this (`verification.py`).

Of equal scores the lowest id wins. Temperature 0 is the argmax after mask and penalty.

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

# The purposes of a draw: each has its own noise. Coupled sampling uses only DRAW, rejection sampling all
# four.
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

    The fields are mixed in one after another, so (1, 0) and (0, 1) have unrelated keys.
    """
    key = 0
    for value in (seed, index, position, purpose):
        key = mix64((key + _GOLDEN + (value & _MASK)) & _MASK)
    return key


def as_int64(x: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer (torch multiplies int64 with wrap-around)."""
    return x - (1 << 64) if x >> 63 else x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(keys: Sequence[int], count: int, device: torch.device | None = None) -> Tensor:
    """`count` numbers in (0, 1) for each key: float64 [len(keys), count]; number j is a hash of key and j."""
    base = torch.tensor([as_int64(k) for k in keys], dtype=torch.int64, device=device).unsqueeze(1)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=device) * as_int64(_GOLDEN)
    x = base + counter
    x = (x ^ _shift_right(x, 30)) * as_int64(_MUL_1)
    x = (x ^ _shift_right(x, 27)) * as_int64(_MUL_2)
    x = x ^ _shift_right(x, 31)
    # 52 bits plus 0.5 are exact in a double. With 53 bits the largest number would be rounded to 1.
    return (_shift_right(x, 12).double() + 0.5) * 2.0**-52


def gumbel_noise(keys: Sequence[int], vocab_size: int, device: torch.device | None = None) -> Tensor:
    """Standard Gumbel noise for every token id: float64 [len(keys), vocab_size]."""
    return -torch.log(-torch.log(uniforms(keys, vocab_size, device)))


class Filters(Protocol):
    """The sampling parameters of one row: `SamplingParams`, or the engine's `SamplingFilters`."""

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
    """The sampler's inputs beside the logits, one entry per row.

    `keys` are `noise_key`s. `seen[i]` are the token ids of prompt and output, for the repetition penalty;
    it is empty if the penalty is off. Ids from `num_token_ids` on do not exist in the tokenizer.
    """

    params: Sequence[Filters]
    keys: Sequence[int]
    seen: Sequence[Sequence[int]]
    num_token_ids: int

    def rows(self, rows: Sequence[int]) -> SamplingBatch:
        """The batch of these rows only."""
        return SamplingBatch(
            [self.params[row] for row in rows],
            [self.keys[row] for row in rows],
            [self.seen[row] for row in rows],
            self.num_token_ids,
        )

    def tensors(self, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The batch as the tensors that kernels read.

        Returns:
            keys, int64 [num_rows]; temperature, top_p, min_p and repetition penalty, float64 [num_rows, 4];
            top_k, int64 [num_rows]; the seen ids of all rows, end to end, each id once per row; the end of
            each row's seen ids, int64 [num_rows].
        """
        keys = column(map(as_int64, self.keys), torch.int64, device)
        return keys, *self.filters(device), *self._seen_columns(device)

    def filters(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """The second and third tensor of `tensors`; they do not depend on the position."""
        return _filter_columns(tuple(self.params), device)

    def _seen_columns(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        if not any(self.seen):
            return _nothing_seen(len(self.params), device)
        seen, ends = list[int](), list[int]()
        for params, ids in zip(self.params, self.seen, strict=True):
            seen += set(ids) if params.repetition_penalty != 1.0 else ()
            ends.append(len(seen))
        return column(seen, torch.int64, device), column(ends, torch.int64, device)


# The same sequences decode for many steps, so tensors that depend only on their parameters are cached.
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

    A row's token depends only on its logits, its parameters and its key: not on the other rows, not on a
    random generator. Ids that the tokenizer does not have get -inf. Then comes the row's repetition penalty.
    At temperature 0 the argmax is drawn. Above 0 the row is filtered, and the argmax of filtered logits +
    `gumbel_noise` of the row's key is drawn. Of equal scores the lowest id wins.

    Args:
        logits: [num_rows, vocab_size], any float dtype; not changed.
        batch: sampling parameters and noise keys of the `num_rows` rows.

    Returns:
        int64 [num_rows].
    """
    return scores(logits, batch).argmax(dim=-1)


def best_tokens(logits: Tensor, batch: SamplingBatch, count: int) -> Tensor:
    """The `count` ids with the highest scores of each row, noise included: int64 [num_rows, count].

    The first id is the one that `sample` draws; a drafter proposes the others as alternatives.
    """
    return scores(logits, batch).sort(dim=-1, descending=True, stable=True).indices[:, :count]


def scores(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The scores whose argmax is the token: float64 [num_rows, vocab_size], filtered, with the row's noise.

    A row of temperature 0 has neither filters nor noise. Arguments as in `sample`.
    """
    result = masked(logits, batch).double()
    drawn = [row for row, params in enumerate(batch.params) if params.temperature > 0]
    if drawn:
        filtered = torch.stack([filter_logits(result[row].float(), batch.params[row]) for row in drawn])
        noise = gumbel_noise([batch.keys[row] for row in drawn], logits.shape[1], logits.device)
        result[torch.tensor(drawn, device=logits.device)] = filtered.double() + noise
    return result


def probabilities(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The distribution that each row is drawn from: float32 [num_rows, vocab_size].

    At temperature 0 one id has probability 1. Arguments as in `sample`; the keys are not used.
    """
    rows = []
    for row, params in zip(masked(logits, batch), batch.params, strict=True):
        if params.temperature > 0:
            rows.append(filter_logits(row, params).softmax(dim=-1))
        else:
            rows.append(torch.zeros_like(row).index_fill_(0, row.argmax(), 1.0))
    return torch.stack(rows)


def masked(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Logits after the penalty, -inf for ids the tokenizer does not have: float32 [num_rows, vocab_size]."""
    logits = logits.float().clone()
    logits[:, batch.num_token_ids :] = NEG_INF
    for row, (params, seen) in enumerate(zip(batch.params, batch.seen, strict=True)):
        if params.repetition_penalty != 1.0:
            logits[row] = penalise_repetition(logits[row], seen, params.repetition_penalty)
    return logits


def penalise_repetition(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Penalise ids that occur in prompt or output: positive logits / penalty, negative logits * penalty.

    Args:
        logits: float32 [vocab_size]; not changed.
        seen: token ids that have occurred. An id that is listed several times is penalised once.
        penalty: above 1 makes repetition less likely, below 1 more likely.

    Returns:
        float32 [vocab_size]; ids that are not in `seen` keep their logits.

    Source: Keskar et al., "CTRL" (arXiv 1909.05858).
    """
    ids = torch.tensor(sorted(set(seen)), dtype=torch.int64, device=logits.device)
    penalty = _moderate(penalty)
    picked = logits[ids]
    return logits.index_copy(0, ids, torch.where(picked > 0, picked / penalty, picked * penalty))


def _moderate(divisor: float) -> float:
    """`divisor` clamped to a range in which float32 neither underflows to 0 nor overflows to inf.

    For example, a valid temperature of 1e-50 would be 0 in float32, and 0 / 0 is NaN.
    """
    return min(max(divisor, 1e-20), 1e20)


def filter_logits(logits: Tensor, params: Filters) -> Tensor:
    """Temperature, then top-k, top-p and min-p: excluded ids become -inf.

    Min-p keeps an id if its probability is at least `params.min_p` times the largest probability, after
    temperature. The row is sorted at most once.

    Args:
        logits: float32 [vocab_size], masked and penalised; not changed.
        params: temperature above 0; it may be tiny: the result still has no NaN.

    Returns:
        float32 [vocab_size], up to a constant (the softmax counts); at least the most likely id survives.
    """
    # The maximum is subtracted first: with a tiny temperature, logits could overflow to inf - inf.
    scaled = (logits - logits.max()) / _moderate(params.temperature)
    if params.top_k or params.top_p < 1.0:
        scaled = keep_top(scaled, params.top_k, params.top_p)
    if params.min_p > 0.0:
        # The rule is p >= min_p * p_max. p_max is exp(0) / sum, so the sum cancels and no exp is needed.
        scaled = torch.where(scaled >= torch.tensor(math.log(params.min_p)), scaled, NEG_INF)
    return scaled


def keep_top(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` most likely ids, then the fewest of them whose probability reaches `top_p`.

    Of equal logits the lowest id counts as the most likely. The row is sorted at most once.

    Args:
        logits: float32 [vocab_size]; not changed.
        top_k: 0, or more than there are, keeps all.
        top_p: in (0, 1], the share of the probability that top-k has kept; 1 keeps all.

    Returns:
        float32 [vocab_size] with -inf for every dropped id.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751).
    """
    # A stable sort: of equal logits the lowest id comes first and is kept first.
    ordered, ids = logits.sort(descending=True, stable=True)
    if top_k:
        ordered[top_k:] = NEG_INF
    if top_p < 1.0:
        # Not normalised: equal logits then add up to whole numbers, so a tie at the threshold is exact.
        mass = (ordered.double() - ordered[0]).exp()
        before = F.pad(mass.cumsum(dim=-1)[:-1], (1, 0))
        ordered[before >= top_p * mass.sum()] = NEG_INF
    return torch.empty_like(logits).index_copy_(0, ids, ordered)


def finite_rows(logits: Tensor) -> Tensor:
    """Whether each row of `logits` [num_rows, vocab_size] is free of NaN and infinity: bool [num_rows].

    Only the largest magnitude of a row is tested: `amax` returns NaN if there is one.
    """
    return logits.abs().amax(dim=-1).isfinite()


def token_logprobs(logits: Tensor, token_ids: Tensor, tops: Sequence[int]) -> list[dict[int, float]]:
    """Log-probabilities under the raw logits: of each row's sampled id, then of its most likely ids.

    Args:
        logits: [num_rows, vocab_size], before mask, penalty and temperature.
        token_ids: int64 [num_rows].
        tops: the number of most likely ids to report, per row.

    Returns:
        One `{token id: log-probability}` per row: the sampled id first, then the most likely ids in falling
        order.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    best, best_ids = logprobs.sort(dim=-1, descending=True, stable=True)
    rows = []
    for row, (token_id, top) in enumerate(zip(token_ids.tolist(), tops, strict=True)):
        ranked = zip(best_ids[row, :top].tolist(), best[row, :top].tolist(), strict=True)
        rows.append({token_id: float(logprobs[row, token_id])} | dict(ranked))
    return rows
