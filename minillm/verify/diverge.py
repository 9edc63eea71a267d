"""Where do two recorded runs part, and was it what went in or what was computed?

    for each request of A, the same request of B       prompt, sampling parameters, and a seed that is used
      for each sample, for each output position        in order, until the first difference:

          other token ids before it, other sampling    the inputs differ      look at the caller
          same inputs, other digest of the logits      the arithmetic         look at layers (`rerun.py`)
          same logits, another token                   the draw               look at the sampler, at drafts

Of all requests the divergence reported is that of the earliest step in A's file. After the first difference
everything differs, and nothing more can be said about it.

A near-tie is called one: the runner-up lies within one rounding of the winner, in the dtype of the logits.
Then the smallest difference upstream is enough for another token, and G4 (`engine/guarantee.py`) permits it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from minillm.engine.same import deciding
from minillm.ops.contract import DTYPES
from minillm.verify.record import Candidate, Record, Recorded, Step

INPUTS, ARITHMETIC, DRAW = "inputs", "arithmetic", "draw"


@dataclass(frozen=True)
class Margin:
    """How far the two highest logits of a step lie apart. `roundings`: in units of the winner's spacing."""

    winner: Candidate
    runner_up: Candidate
    gap: float
    roundings: float

    @property
    def is_near_tie(self) -> bool:
        """Whether the runner-up lies within one rounding of the winner."""
        return self.roundings <= 1


@dataclass(frozen=True)
class Divergence:
    """The first step at which two records part. `a`, `b`: the step in each; None if only inputs are known."""

    kind: str
    detail: str
    request_a: Recorded
    request_b: Recorded
    sample: int
    position: int
    a: Step | None = None
    b: Step | None = None
    margin_a: Margin | None = None
    margin_b: Margin | None = None

    @property
    def is_near_tie(self) -> bool:
        """Whether one of the two runs had nearly equal candidates here."""
        return any(margin is not None and margin.is_near_tie for margin in (self.margin_a, self.margin_b))


@dataclass(frozen=True)
class Comparison:
    """The result: the steps that were compared, what only one record has, and the divergence.

    `only_a`, `only_b`: requests. `more_a`, `more_b`: steps of requests that are in both and have not parted.
    """

    num_steps: int
    num_requests: int
    only_a: int
    only_b: int
    more_a: int
    more_b: int
    first: Divergence | None


def compare_records(a: Record, b: Record) -> Comparison:
    """Compare step by step."""
    pairs, only_a, only_b = _pair(a.requests, b.requests)
    num_steps, more_a, more_b, found = 0, 0, 0, list[Divergence]()
    for left, right in pairs:
        steps, divergence = _compare(left, right, a.logits_dtype, b.logits_dtype)
        num_steps += steps
        found += divergence
        if not divergence:
            more_a += left.num_steps - steps
            more_b += right.num_steps - steps
    first = min(found, key=lambda each: each.a.order if each.a else -1, default=None)
    return Comparison(num_steps, len(pairs), only_a, only_b, more_a, more_b, first)


def margin(top: tuple[Candidate, ...], dtype: str) -> Margin | None:
    """The margin of a step; None if it has no two candidates with finite logits."""
    if len(top) < 2:
        return None
    winner, runner_up = top
    exact = torch.tensor([winner.logit, runner_up.logit], dtype=torch.float64)
    if not bool(exact.isfinite().all()):
        return None
    gap = winner.logit - runner_up.logit
    return Margin(winner, runner_up, gap, gap / spacing(winner.logit, dtype))


def spacing(value: float, dtype: str) -> float:
    """The distance between neighbouring numbers of `dtype` at `value`."""
    info = torch.finfo(DTYPES[dtype])
    if abs(value) < info.tiny:
        return float(info.smallest_normal * info.eps)
    _, exponent = torch.frexp(torch.tensor(value, dtype=torch.float64))
    return float(info.eps) * 2.0 ** (int(exponent) - 1)


def _pair(a: list[Recorded], b: list[Recorded]) -> tuple[list[tuple[Recorded, Recorded]], int, int]:
    """Equal requests are pairs, whatever order they came in; of the rest, those in the same place."""
    waiting: dict[Any, list[Recorded]] = {}
    for request in b:
        waiting.setdefault(_key(request), []).append(request)
    pairs, rest_a = list[tuple[Recorded, Recorded]](), list[Recorded]()
    for request in a:
        same = waiting.get(_key(request))
        if same:
            pairs.append((request, same.pop(0)))
        else:
            rest_a.append(request)
    rest_b = sorted((r for each in waiting.values() for r in each), key=lambda r: r.number)
    count = min(len(rest_a), len(rest_b))
    pairs += zip(rest_a, rest_b, strict=False)
    return pairs, len(rest_a) - count, len(rest_b) - count


def _key(request: Recorded) -> Any:
    seed = None if request.sampling.temperature == 0 else request.seed
    chosen = deciding(request.sampling)
    values = [sorted(map(repr, v)) if isinstance(v, frozenset) else repr(v) for v in chosen.values()]
    return tuple(request.prompt), seed, request.sampling.n, repr([*chosen, *values])


def _compare(a: Recorded, b: Recorded, dtype_a: str, dtype_b: str) -> tuple[int, list[Divergence]]:
    """The number of steps compared, and the first divergence of each sample."""
    if (detail := _other_inputs(a, b)) is not None:
        return 0, [Divergence(INPUTS, detail, a, b, 0, 0)]
    count, found = 0, list[Divergence]()
    for sample in sorted(a.samples.keys() & b.samples.keys()):
        for position, left, right in _steps(a.samples[sample], b.samples[sample]):
            count += 1
            kind = _kind(left, right)
            if kind is not None:
                margins = margin(left.top, dtype_a), margin(right.top, dtype_b)
                detail = _detail(kind, left, right)
                found.append(Divergence(kind, detail, a, b, sample, position, left, right, *margins))
                break
    return count, found


def _other_inputs(a: Recorded, b: Recorded) -> str | None:
    """In what the inputs of two requests differ, or None."""
    if a.prompt != b.prompt:
        pairs = enumerate(zip(a.prompt, b.prompt, strict=False))
        at = next((i for i, (x, y) in pairs if x != y), min(len(a.prompt), len(b.prompt)))
        return f"the prompts part at token {at} (of {len(a.prompt)} and {len(b.prompt)})"
    left, right = deciding(a.sampling), deciding(b.sampling)
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    if names or a.sampling.n != b.sampling.n:
        return f"other sampling parameters: {', '.join(names or ['n'])}"
    if a.seed != b.seed and a.sampling.temperature != 0:
        return f"other seeds: {a.seed} and {b.seed}"
    return None


def _steps(a: dict[int, Step], b: dict[int, Step]) -> Iterator[tuple[int, Step, Step]]:
    for position in range(min(len(a), len(b))):
        yield position, a[position], b[position]


def _kind(a: Step, b: Step) -> str | None:
    if a.digest is not None and b.digest is not None and a.digest != b.digest:
        return ARITHMETIC
    return None if a.token_id == b.token_id else DRAW


def _detail(kind: str, a: Step, b: Step) -> str:
    tokens = "the same token" if a.token_id == b.token_id else "another token"
    if kind == ARITHMETIC:
        return f"the same inputs gave other logits, and {tokens}"
    return (
        "the same logits gave another token"
        if a.digest and b.digest
        else "another token; no logits on record"
    )
