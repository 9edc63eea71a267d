"""Goodput: requests in a second that got what their users were promised.

    intended    sent             first token         next  next     end
       | late --- | ttft ----------- |
       | what the user waits ------- |  tpot: mean of these gaps --- |

In an open loop users do not wait for each other: the intended start of each request is fixed before the run.
A load generator that is late, because it waits for the engine, must not hide that. So the time to the first
token is counted from the intended start. A failed request is a miss: a user who gets nothing must not make
the figure better. Throughput can rise while goodput falls (DistServe, OSDI 2024). Left out: an interval for
the figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from minillm.observe.metrics import RequestTimes
from minillm.observe.slo import Slo


class Sent(NamedTuple):
    """What a load generator notes of a request.

    `intended`: when it should start, on the clock of the events. `request_id`: None if the engine refused it.
    `failed`: it was refused, or ended by an error or at its deadline.
    """

    intended: float
    request_id: str | None
    failed: bool = False


def goodput(
    sent: Iterable[Sent], requests: Mapping[str, RequestTimes], promise: Slo, seconds: float
) -> float:
    """How many requests in a second kept the promise, in a run of `seconds`.

    A request keeps it if all of this is true:

    * it did not fail, and `requests` has its times
    * its first sample got its first token at most `promise.ttft` after the *intended* start
    * its `tpot` is at most `promise.tpot`; a request with one token has no TPOT, and keeps this part

    A cancelled request did not fail: it is judged by what it got. Each request is looked at once.
    """
    kept = 0
    for intended, request_id, failed in sent:
        times = None if failed or request_id is None else requests.get(request_id)
        if times is None or times.ttft is None:
            continue
        waited = times.submitted + times.ttft - intended
        kept += waited <= promise.ttft and (times.tpot is None or times.tpot <= promise.tpot)
    return kept / seconds
