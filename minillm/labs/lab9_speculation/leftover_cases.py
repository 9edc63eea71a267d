"""Task 9.2, the draw after rejected or accepted drafts: cases and known mistakes of `draw_leftover`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.labs.grader.lab import Case, Mistake
from minillm.ops.verification import draw_leftover

Draw = Callable[[Tensor, Tensor | None, Tensor], int]
NINE = [i / 10 for i in range(1, 10)]


def numbers(values: Sequence[float]) -> Tensor:
    """Float64 [len(values)]."""
    return torch.tensor(values, dtype=torch.float64)


def draw_case(
    name: str, p: Sequence[float], q: Sequence[float] | None, uniforms: Sequence[float] = NINE
) -> Case:
    """The token of each uniform."""

    def run(draw: Draw) -> list[int]:
        given = None if q is None else numbers(q)
        return [draw(numbers(p), given, numbers([u])[0]) for u in uniforms]

    return Case(name, run)


LEFT_CASES = (
    draw_case("no q: four tokens", [0.125, 0.5, 0.125, 0.25], None),
    draw_case("p - q is positive at two of four", [0.125, 0.5, 0.125, 0.25], [0.5, 0.25, 0.25, 0.0]),
    draw_case("at one of four", [0.25, 0.25, 0.25, 0.25], [0.0, 0.25, 0.5, 0.25]),
    draw_case("q is a point", [0.25, 0.25, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0]),
    draw_case("p is a point", [0.0, 0.0, 1.0, 0.0], [0.25, 0.5, 0.0, 0.25]),
    draw_case("p equals q", [0.25, 0.25, 0.5, 0.0], [0.25, 0.25, 0.5, 0.0]),
    draw_case(
        "ids of probability 0, the smallest and largest uniforms",
        [0, 0.5, 0, 0.5, 0],
        None,
        [1e-16, 1 - 2**-53],
    ),
    draw_case("a uniform that is a border", [0.0, 0.25, 0.25, 0.5], None, [0.25, 0.5]),
)


@dataclass(frozen=True)
class Left:
    """`draw_leftover`; each field replaces one part of it."""

    weights: Callable[[Tensor, Tensor], Tensor] = lambda p, q: (p - q).clamp(min=0.0)
    is_normalised: bool = True
    falls_back: bool = True
    is_strict: bool = True

    def __call__(self, p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
        weights = p if q is None else self.weights(p, q)
        if weights.sum() == 0.0:
            weights = p if self.falls_back else weights
        running = weights.cumsum(dim=0)
        level = uniform * running[-1] if self.is_normalised else uniform
        beyond = (running > level if self.is_strict else running >= level).nonzero()
        return int(beyond[0]) if len(beyond) else len(p) - 1


def likeliest(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Always takes the likeliest id."""
    return int((p if q is None else p - q).argmax())


def finds_none(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Fails if all weights are 0."""
    if q is not None and bool((p <= q).all()):
        raise IndexError
    return draw_leftover(p, q, uniform)


def from_the_end(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Reads the ids from the last to the first."""
    return len(p) - 1 - draw_leftover(p.flip(0), None if q is None else q.flip(0), uniform)


LEFT_MISTAKES = (
    Mistake(
        "max(p - q, 0) is not clamped at 0: negative weights make the running sum go down",
        Left(lambda p, q: p - q, falls_back=False),
    ),
    Mistake(
        "if q is greater than p, the weight is 0, not q - p: q has already drawn these ids too often",
        Left(lambda p, q: (p - q).abs()),
    ),
    Mistake(
        "the weights are not normalised: their sum is less than 1, compare with uniform * sum",
        Left(is_normalised=False),
    ),
    Mistake("drawn from q: draw from max(p - q, 0)", Left(lambda p, q: q)),
    Mistake(
        "drawn from p although a draft was rejected: ids that are likely under q would come too often (or q "
        "is subtracted, but without a clamp at 0: then the weights sum to 0)",
        Left(lambda p, q: p),
    ),
    Mistake("the weights are q - p: they must be p - q", Left(lambda p, q: (q - p).clamp(min=0.0))),
    Mistake(
        "if p equals q, all weights are 0 and an arbitrary id is returned: draw from p",
        Left(falls_back=False),
    ),
    Mistake("if p equals q, all weights are 0 and the search finds no id: draw from p", finds_none),
    Mistake("the likeliest id is taken: it must be drawn", likeliest),
    Mistake(
        "the distribution is correct, but not the order: count the running sum from id 0 on",
        from_the_end,
    ),
    Mistake(
        "`>=` instead of `>`: at a border take the next id, so that an id of weight 0 is never drawn",
        Left(is_strict=False),
    ),
)
