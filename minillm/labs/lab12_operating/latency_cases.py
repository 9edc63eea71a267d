"""Tasks 12.2 and 12.3, queue, e2e, ttft, tpot and itl: cases and known mistakes of `RequestTimes`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake
from minillm.labs.lab12_operating.recorder import Recorded
from minillm.labs.lab12_operating.runs import hidden, leaving, preempting, samples, several
from minillm.observe.metrics import RequestTimes, request_times

Names = tuple[str, ...]
WHOLE: Names = ("queue", "e2e")
TOKENS: Names = ("ttft", "tpot", "itl")


def same(times_class: type[RequestTimes], times: RequestTimes) -> RequestTimes:
    """The same times in the student's class."""
    mine = times_class(times.submitted, times.prompt_tokens, times.admitted)
    mine.tokens = defaultdict(list, {index: list(tokens) for index, tokens in times.tokens.items()})
    mine.ends = dict(times.ends)
    return mine


def latencies(names: Names, times: RequestTimes) -> list[Any]:
    """The named ones."""
    return [getattr(times, name) for name in names]


def run_case(name: str, run: Callable[[], Recorded], names: Names) -> Case:
    """The latencies of every request of a run."""

    def latencies_of(times_class: type[RequestTimes]) -> list[Any]:
        found = request_times(run().events)
        return [[r, latencies(names, same(times_class, times))] for r, times in found.items()]

    return Case(name, latencies_of)


def made(
    times_class: type[RequestTimes],
    tokens: Mapping[int, list[float]],
    ends: Mapping[int, float] | None = None,
    admitted: float | None = 1.5,
) -> RequestTimes:
    """A request that was submitted at 1.0."""
    return same(times_class, RequestTimes(1.0, 4, admitted, tokens=dict(tokens), ends=dict(ends or {})))


def made_case(name: str, arguments: tuple[Any, ...], names: Names) -> Case:
    """The latencies of one made request: submitted at 1.0, admitted at 1.5."""
    return Case(name, lambda times_class: latencies(names, made(times_class, *arguments)))


def read_again(names: Names, times_class: type[RequestTimes]) -> list[Any]:
    """Two requests in turns, read twice, and again after another token."""
    first = made(times_class, {0: [2.0, 2.5]})
    second = made(times_class, {0: [3.0, 4.0, 8.0]})
    seen = [latencies(names, times) for times in (first, second, first)]
    first.tokens[0].append(4.5)
    return [*seen, latencies(names, first), latencies(names, second)]


def latency_cost(names: Names, times_class: type[RequestTimes]) -> Counted:
    """The lines for a request of 300 tokens."""
    times = made(times_class, {0: [2.0 + i / 8 for i in range(300)]})
    latencies(names, made(times_class, {0: [2.0, 3.0]}))
    return within(5 * 4 * 300, counted_lines(partial(latencies, names, times)), LINES)


def cases_of(names: Names) -> tuple[Case, ...]:
    """The cases about these latencies."""
    return (
        *(run_case(name, run, names) for name, run in RUNS.items()),
        *(made_case(name, arguments, names) for name, arguments in MADE.items()),
        Case("two requests in turns, then another token", partial(read_again, names), "aliasing"),
        Case("the work for 300 tokens", partial(latency_cost, names), "cost"),
    )


def more_runs(random: Random) -> Iterable[Case]:
    """Another run."""
    seed = random.randrange(1 << 30)
    yield run_case(f"a run that preempts, seed {seed}", lambda: hidden("memory", seed), WHOLE + TOKENS)


RUNS: Mapping[str, Callable[[], Recorded]] = {
    "three requests": several,
    "requests with one, three and two samples": samples,
    "one leaves while it waits, one later": leaving,
    "preempted and resumed": preempting,
}
MADE: Mapping[str, tuple[Any, ...]] = {
    "tokens at 2, 4 and 7": ({0: [2.0, 4.0, 7.0]}, {0: 7.0}),
    "one token": ({0: [2.0]}, {0: 2.0}),
    "no token yet": ({},),
    "the second sample is first and ends last": ({0: [4.0, 5.0], 1: [3.0, 9.0]}, {0: 5.0, 1: 9.5}),
    "the second sample has the newest token": ({0: [4.0, 5.0], 1: [3.0, 9.0]}, {0: 5.0}),
    "only the second sample has tokens": ({1: [3.0, 4.0]},),
    "cancelled in the queue, at 3": ({}, {0: 3.0}, None),
    "cancelled after two tokens, at 9": ({0: [2.0, 4.0]}, {0: 9.0}),
    "still waiting": ({}, None, None),
}
WHOLE_CASES, TOKEN_CASES = cases_of(WHOLE), cases_of(TOKENS)


# --- known mistakes ----------------------------------------------------------------------------------------


def with_other(**others: Callable[[RequestTimes], Any]) -> type[RequestTimes]:
    """`RequestTimes` with other properties."""
    return type("RequestTimes", (RequestTimes,), {name: property(get) for name, get in others.items()})


def of_first(get: Callable[[list[float], RequestTimes], Any], least: int = 1) -> Any:
    """A latency from the first sample's tokens; None if there are fewer than `least`."""
    return lambda times: get(times.tokens[0], times) if len(times.tokens[0]) >= least else None


def gaps_by_search(times: RequestTimes) -> list[float]:
    """Looks for each token's place from the beginning."""
    tokens, found = times.tokens[0], list[float]()
    for i in range(1, len(tokens)):
        for j in range(i):
            if j == i - 1:
                found.append(tokens[i] - tokens[j])
    return found


def ends_needed(times: RequestTimes) -> float:
    """Until the admission, or the first end, which must be there."""
    return (times.ends[0] if times.admitted is None else times.admitted) - times.submitted


WHOLE_MISTAKES = (
    Mistake(
        "a request that was never admitted has waited until its end",
        with_other(queue=lambda times: 0.0 if times.admitted is None else times.admitted - times.submitted),
    ),
    Mistake(
        "a request that was never admitted has waited until its end",
        with_other(queue=lambda times: None if times.admitted is None else times.admitted - times.submitted),
    ),
    Mistake(
        "e2e ends with the first sample: the request ends with its last one",
        with_other(e2e=lambda times: max([*times.tokens[0][-1:], times.ends.get(0, 1.0)]) - times.submitted),
    ),
    Mistake(
        "e2e ends with the newest token: a request that is cancelled ends later",
        with_other(
            e2e=lambda times: (
                max((t[-1] for t in times.tokens.values() if t), default=times.submitted) - times.submitted
            )
        ),
    ),
    Mistake(
        "queue goes to the first token: it ends with the admission",
        with_other(queue=lambda times: (times.tokens[0] or [times.latest])[0] - times.submitted),
    ),
    Mistake(
        "e2e begins when the request is admitted: the user waits from the submission on",
        with_other(
            e2e=lambda times: times.latest - (times.submitted if times.admitted is None else times.admitted)
        ),
    ),
    Mistake(
        "e2e needs an end: a request that is not finished lasts to its newest token",
        with_other(e2e=lambda times: max(times.ends.values(), default=times.submitted) - times.submitted),
    ),
    Mistake(
        "the end of a request that never ended: it has waited 0 s so far",
        with_other(queue=ends_needed),
    ),
)
TOKEN_MISTAKES = (
    Mistake(
        "ttft begins when the request is admitted: the user waits from the submission on",
        with_other(ttft=of_first(lambda t, times: t[0] - (times.admitted or 0.0))),
    ),
    Mistake(
        "ttft is that of the first sample, not of the sample that was quickest",
        with_other(
            ttft=lambda times: min((t[0] - times.submitted for t in times.tokens.values() if t), default=None)
        ),
    ),
    Mistake(
        "a request without a token has no ttft: None, not 0, which would look like the best one",
        with_other(ttft=lambda times: times.tokens[0][0] - times.submitted if times.tokens[0] else 0.0),
    ),
    Mistake(
        "tpot divides by the number of tokens: there is one gap fewer",
        with_other(tpot=of_first(lambda t, _: (t[-1] - t[0]) / len(t), 2)),
    ),
    Mistake(
        "the wait for the first token is in tpot: it begins with the first token",
        with_other(tpot=of_first(lambda t, times: (t[-1] - times.submitted) / len(t), 2)),
    ),
    Mistake(
        "tpot goes to the end of the request: it ends with the newest token",
        with_other(tpot=of_first(lambda t, times: (times.latest - t[0]) / (len(t) - 1), 2)),
    ),
    Mistake(
        "a request with one token has no tpot: None",
        with_other(tpot=of_first(lambda t, _: (t[-1] - t[0]) / max(1, len(t) - 1))),
    ),
    Mistake(
        "tpot of one token divides by zero: such a request has none",
        with_other(tpot=of_first(lambda t, _: (t[-1] - t[0]) / (len(t) - 1))),
    ),
    Mistake(
        "the wait for the first token is in itl: itl is between tokens",
        with_other(
            itl=lambda times: [
                b - a for a, b in zip([times.submitted, *times.tokens[0]], times.tokens[0], strict=False)
            ]
        ),
    ),
    Mistake(
        "itl of all samples: only the first sample's gaps",
        with_other(itl=lambda times: [b - a for t in times.tokens.values() for a, b in pairwise(t)]),
    ),
    Mistake(
        "each gap is looked for from the beginning: one walk over the tokens", with_other(itl=gaps_by_search)
    ),
)
