"""Task 12.5, goodput: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from random import Random
from typing import Any

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake
from minillm.labs.lab12_operating.recorder import Recorded, Setup, User, record
from minillm.labs.lab12_operating.runs import example, hidden, leaving
from minillm.observe.goodput import Sent, goodput
from minillm.observe.metrics import RequestTimes, request_times
from minillm.observe.slo import Slo

Good = Callable[[Iterable[Sent], Mapping[str, RequestTimes], Slo, float], float]
PROMISES = (Slo(0.0625, 0.015625), Slo(0.25, 0.03125), Slo(0.2, 9.0), Slo(9.0, 9.0))
LOOSE = Slo(9.0, 9.0)


def run_case(name: str, run: Callable[[], Recorded]) -> Case:
    """The goodput of a run under several promises."""

    def goodputs(good: Good) -> list[float]:
        found = run()
        times = request_times(found.events)
        return [good(found.sent, times, promise, found.seconds) for promise in PROMISES]

    return Case(name, goodputs)


def full_queue() -> Recorded:
    """Eight users at an engine with one place and a queue for two: most are refused."""
    users = tuple(User(0.002 * i, 8, 10) for i in range(8))
    return record(Setup(max_num_seqs=1, max_queued_requests=2), users)


def late_client() -> Recorded:
    """A client that is busy for long steps: requests are handed over late."""
    users = tuple(User(0.001 * i, 48, 6) for i in range(10))
    return record(Setup(), users)


def times(*tokens: float, submitted: float = 1.0) -> RequestTimes:
    """A request that was submitted at 1.0 and got tokens at these times."""
    return RequestTimes(submitted, 4, submitted, tokens={0: list(tokens)})


def made_case(name: str, requests: dict[str, RequestTimes], *sent: Sent, promise: Slo) -> Case:
    """Made requests in a run of 4 seconds."""
    return Case(name, lambda good: good(list(sent), dict(requests), promise, 4.0))


def one(name: str, tokens: tuple[float, ...], promise: Slo, intended: float = 1.0) -> Case:
    """One made request beside one that keeps every promise."""
    requests = {"a": times(*tokens), "b": times(1.0, 1.0)}
    sent = (Sent(intended, "a"), Sent(1.0, "b"))
    return made_case(name, requests, *sent, promise=promise)


def in_turns(good: Good) -> list[Any]:
    """An iterator of what was sent; two runs in turns; the arguments afterwards."""
    requests, sent = {"a": times(2.0, 2.5), "b": times(3.0)}, [Sent(1.0, "a"), Sent(0.5, "b")]
    first = good(iter(sent), requests, Slo(1.0, 1.0), 2.0)
    second = good(sent[:1], {"a": times(9.0)}, Slo(1.0, 1.0), 2.0)
    return [first, second, good(sent, requests, Slo(1.0, 1.0), 2.0), len(sent), sorted(requests)]


def goodput_cost(good: Good) -> Counted:
    """The lines for 300 requests of 20 tokens."""
    requests = {f"r{i}": times(*(2.0 + j / 64 for j in range(20))) for i in range(300)}
    sent = [Sent(1.0, name) for name in requests]
    good(sent[:1], requests, LOOSE, 1.0)
    return within(100 * 300, counted_lines(partial(good, sent, requests, LOOSE, 1.0)), LINES)


def more_goodputs(random: Random) -> Iterable[Case]:
    """Other runs."""
    for kind in ("burst", "memory"):
        seed = random.randrange(1 << 30)
        yield run_case(f"{kind}, seed {seed}", partial(hidden, kind, seed))


GOODPUT_CASES = (
    run_case("a burst", lambda: example("burst")),
    run_case("a pool that is too small", lambda: example("memory")),
    run_case("a full queue refuses", full_queue),
    run_case("a client that hands requests over late", late_client),
    run_case("users who leave", leaving),
    one("both limits are reached exactly", (2.0, 2.5, 3.0), Slo(1.0, 0.5)),
    one("the first token is late", (2.25, 2.5), Slo(1.0, 0.5)),
    one("the later tokens are slow", (2.0, 2.5, 3.5), Slo(1.0, 0.5)),
    one("one gap is slow, the mean is not", (2.0, 2.125, 2.875, 3.0), Slo(1.0, 0.5)),
    one("late to send: the user has waited since 0.5", (2.0, 2.5), Slo(1.0, 0.5), 0.5),
    one("one token", (2.0,), Slo(1.0, 0.5)),
    one("no token", (), LOOSE),
    made_case(
        "failed after a quick first token",
        {"a": times(1.5, 1.75), "b": times(1.5)},
        Sent(1.0, "a", True),
        Sent(1.0, "b"),
        promise=LOOSE,
    ),
    made_case("refused, or unknown", {}, Sent(1.0, None, True), Sent(1.0, "x"), promise=LOOSE),
    Case("an iterator, and two runs in turns", in_turns, "aliasing"),
    Case("the work for 300 requests", goodput_cost, "cost"),
)


# --- known mistakes ----------------------------------------------------------------------------------------

Kept = Callable[[Sent, RequestTimes, Slo], bool]


def is_kept(sent: Sent, t: RequestTimes, promise: Slo) -> bool:
    """The right test of a request that did not fail and has times."""
    if t.ttft is None:
        return False
    waited = t.submitted + t.ttft - sent.intended
    return waited <= promise.ttft and (t.tpot is None or t.tpot <= promise.tpot)


def counting(kept: Kept, skips_failed: bool = True, per_second: bool = True) -> Good:
    """Counts what `kept` says."""

    def good(
        sent: Iterable[Sent], requests: Mapping[str, RequestTimes], promise: Slo, seconds: float
    ) -> float:
        known = [(s, requests[str(s.request_id)]) for s in sent if s.request_id in requests]
        judged = [kept(s, t, promise) for s, t in known if not (s.failed and skips_failed)]
        return sum(judged) / (seconds if per_second else max(1, len(judged)))

    return good


def expects_times(
    sent: Iterable[Sent], requests: Mapping[str, RequestTimes], promise: Slo, seconds: float
) -> float:
    """Looks every request up."""
    listed = list(sent)
    for request in listed:
        requests[str(request.request_id)]
    return goodput(listed, requests, promise, seconds)


def mean_ttft(
    sent: Iterable[Sent], requests: Mapping[str, RequestTimes], promise: Slo, seconds: float
) -> float:
    """All requests are good if their mean is."""
    found = [requests[str(s.request_id)] for s in sent if s.request_id in requests and not s.failed]
    waits = [t.ttft for t in found if t.ttft is not None]
    return len(waits) / seconds if waits and sum(waits) / len(waits) <= promise.ttft else 0.0


def searches(
    sent: Iterable[Sent], requests: Mapping[str, RequestTimes], promise: Slo, seconds: float
) -> float:
    """Looks for each request's times in all of them."""
    listed = list(sent)
    for request in listed:
        for name in requests:
            if name == request.request_id:
                break
    return goodput(listed, requests, promise, seconds)


GOODPUT_MISTAKES = (
    Mistake(
        "the wait is counted from the submission, so a late client hides it: count from the intended start",
        counting(lambda s, t, p: is_kept(s._replace(intended=t.submitted), t, p)),
    ),
    Mistake(
        "a request that failed is counted, because its first token was quick: a failure is a miss",
        counting(is_kept, skips_failed=False),
    ),
    Mistake(
        "a request that reaches a limit exactly keeps it: use <=",
        counting(
            lambda s, t, p: (
                t.ttft is not None
                and t.submitted + t.ttft - s.intended < p.ttft
                and (t.tpot is None or t.tpot < p.tpot)
            )
        ),
    ),
    Mistake(
        "a request with one token has no TPOT: it keeps this part of the promise",
        counting(lambda s, t, p: t.tpot is not None and is_kept(s, t, p)),
    ),
    Mistake(
        "only the first token is looked at: TPOT is promised too",
        counting(lambda s, t, p: is_kept(s, t, Slo(p.ttft, 1e9))),
    ),
    Mistake(
        "only TPOT is looked at: the first token is promised too",
        counting(lambda s, t, p: is_kept(s, t, Slo(1e9, p.tpot))),
    ),
    Mistake(
        "one slow gap breaks the promise: TPOT is the mean",
        counting(lambda s, t, p: is_kept(s, t, p) and max(t.itl, default=0.0) <= p.tpot),
    ),
    Mistake(
        "the share of the requests: goodput is a number of requests in a second",
        counting(is_kept, per_second=False),
    ),
    Mistake(
        "all requests that got a token are counted: this is throughput",
        counting(lambda s, t, p: bool(t.tokens[0])),
    ),
    Mistake(
        "a request without a first token keeps nothing",
        counting(lambda s, t, p: t.ttft is None or is_kept(s, t, p)),
    ),
    Mistake("a refused request has no id, and one may have no times: both are misses", expects_times),
    Mistake("the mean of all requests is compared: a promise is made to each user", mean_ttft),
    Mistake("the times of a request are looked for among all: look them up by id", searches),
)
