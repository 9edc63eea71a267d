"""Task 9.2, the draw after rejected or accepted drafts: cases and known mistakes of `draw_leftover`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Case, Mistake, Words
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
        torch.manual_seed(0)  # a solution that draws its own numbers gives the same answer in each check
        given = None if q is None else numbers(q)
        return [int(draw(numbers(p), given, numbers([u])[0])) for u in uniforms]

    return Case(name, run)


def twice_case(draw: Draw) -> list[object]:
    """The same tensors for each draw: they must not change."""
    torch.manual_seed(0)
    p, q = numbers([0.125, 0.5, 0.125, 0.25]), numbers([0.5, 0.25, 0.25, 0.0])
    found = [int(draw(p, given, numbers([u])[0])) for u in (0.3, 0.6, 0.9) for given in (q, None)]
    return [found, p, q]


def cost_case(draw: Draw) -> Words:
    """The bytes written for one draw from 2048 ids."""
    size = 2048
    p, q = torch.full((size,), 1 / size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    q[:100] = 0.01
    with counted_work() as work:
        draw(p, q, numbers([0.5])[0])
    words = "at most" if work.bytes_written <= 40 * 8 * size else "more than"
    return Words(f"{words} 40 times as many bytes written as p has")


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
    draw_case("p and q differ very little", [0.25, 0.25, 0.5], [0.25, 0.25 - 2**-40, 0.5 - 2**-40]),
    draw_case("a weight between two zeros", [0.0, 0.5, 0.0, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25, 0.0]),
    Case("three draws with the same p and q", twice_case, "aliasing"),
    Case("one draw from 2048 ids", cost_case, "cost"),
)


@dataclass(frozen=True)
class Left:
    """`draw_leftover`; each field replaces one part of it."""

    weights: Callable[[Tensor, Tensor], Tensor] = lambda p, q: (p - q).clamp(min=0.0)
    is_normalised: bool = True
    falls_back: bool = True
    is_strict: bool = True
    smallest: float = 0.0  # a smaller sum counts as 0
    later: int = 0  # added to the id
    none: Callable[[Tensor], int] = lambda weights: len(weights) - 1  # if the level is never reached

    def __call__(self, p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
        weights = p if q is None else self.weights(p, q)
        if weights.sum() <= self.smallest:
            weights = p if self.falls_back else weights
        running = weights.cumsum(dim=0)
        level = uniform * running[-1] if self.is_normalised else uniform
        beyond = (running > level if self.is_strict else running >= level).nonzero()
        return min(int(beyond[0]) + self.later, len(p) - 1) if len(beyond) else self.none(weights)


def last_weight(weights: Tensor) -> int:
    """The last id with a weight."""
    return int(weights.nonzero()[-1])


def no_id(weights: Tensor) -> int:
    """An error."""
    raise IndexError


def likeliest(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Always takes the likeliest id."""
    return int((p if q is None else p - q).argmax())


def negative_weights(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Does not clamp; a sum of 0 is noticed by the absolute values."""
    weights = p if q is None else p - q
    if weights.abs().sum() == 0.0:
        weights = p
    running = weights.cumsum(dim=0)
    beyond = (running > uniform * running[-1]).nonzero()
    return int(beyond[0]) if len(beyond) else int(weights.nonzero()[-1])


def own_numbers(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Ignores the uniform number."""
    weights = p if q is None else (p - q).clamp(min=0.0)
    return int(torch.multinomial(weights if weights.sum() > 0 else p, 1))


def exponentials(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Normalises with softmax."""
    return draw_leftover((p if q is None else p - q).softmax(0), None, uniform)


def in_place(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Subtracts q from the caller's p."""
    found = draw_leftover(p, q, uniform)
    if q is not None:
        p.sub_(q).clamp_(min=0.0)
    return found


def among_the_positive(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Counts only ids with a positive weight."""
    weights = p if q is None else (p - q).clamp(min=0.0)
    weights = weights if weights.sum() > 0 else p
    return int((weights[: draw_leftover(p, q, uniform)] > 0).sum())


def squared(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Compares every id with every other one."""
    torch.ones(len(p), len(p), dtype=p.dtype)
    return draw_leftover(p, q, uniform)


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
    *(
        Mistake(
            "the weights are not normalised: their sum is less than 1, compare with uniform * sum",
            Left(is_normalised=False, none=none),
        )
        for none in (last_weight, no_id)
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
    Mistake(
        "max(p - q, 0) is not clamped at 0: negative weights make the running sum go down", negative_weights
    ),
    Mistake(
        "the uniform is not used: it must decide the draw, so that a request can be repeated", own_numbers
    ),
    Mistake("softmax is not a normalisation: an id of weight 0 gets a positive one", exponentials),
    Mistake(
        "a small sum counts as 0: the weights are normalised, however small they are", Left(smallest=1e-6)
    ),
    Mistake("one id too far: the first one at which the running sum exceeds the level", Left(later=1)),
    Mistake("the index counts only ids with a positive weight: return the id itself", among_the_positive),
    Mistake("q is subtracted from the caller's p: make a new tensor", in_place),
    Mistake("a table of ids by ids is made: one running sum is enough", squared),
)


def random_draws(random: Random) -> Iterable[Case]:
    """Random cases: distributions with some zeros."""

    def some() -> list[float]:
        weights = [random.choice([0, 1, 2, 3, 4]) * random.random() for _ in range(6)]
        weights[random.randrange(6)] += 0.1
        return [weight / sum(weights) for weight in weights]

    for number in range(3):
        uniforms = [random.random() for _ in range(12)]
        yield draw_case(f"random p {number + 1}", some(), some() if number else None, uniforms)
