# ruff: noqa: F401 - imports that the finished file uses
"""Lab 12: Observing and operating.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 12        run the checks
    minillm labs hint 12.1       a hint; --level 2 and --level 3 give more detail

Made from the engine's source by `minillm labs start 12`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from minillm.observe.events import Event
from minillm.observe.goodput import Sent
from minillm.observe.incident import PATIENCE, Culprit, Finding
from minillm.observe.memory_use import MemoryUse
from minillm.observe.slo import Slo


def request_times(events: Iterable[Event]) -> dict[str, RequestTimes]:
    """The clock times of every request in a trace, by request id, in the order in which they were queued.

    Read from the events (`event.kind`, `event.time`, `event.request_id`, and fields as `event["index"]`):

        queue     `submitted` and `prompt_tokens`
        admit     `admitted` and `cached_tokens`; a second one replaces the first, whose step was interrupted
        sample    one more time in `tokens` of each (request id, sample index) in `event["requests"]`
        finish    `ends` of the sample `event["index"]`

    A request whose `queue` is not in the trace began before it, and is left out. A preempted request is
    resumed, not admitted again. The times are those of the events, unchanged.

    Each event is read once: the work may grow with the events and the samples in them, but not faster.
    """
    # Stuck? minillm labs hint 12.1
    raise NotImplementedError("Lab 12.1 request_times; hint: minillm labs hint 12.1")


@dataclass
class RequestTimes:
    """The clock times of one request: submitted, admitted, each token and the end of each of its samples.

    `tokens`, `ends`: by sample index. `drafted`, `accepted`: draft tokens, over all samples.
    """

    submitted: float
    prompt_tokens: int
    admitted: float | None = None
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[int, float] = field(default_factory=dict)

    @property
    def latest(self) -> float:
        """The time of the newest token or, if later, of the end of a sample; without either, `submitted`."""
        tokens = [times[-1] for times in self.tokens.values() if times]
        return max([*tokens, *self.ends.values()], default=self.submitted)

    @property
    def queue(self) -> float:
        """Seconds from submission to admission; for a request that was never admitted, to its end."""
        # Stuck? minillm labs hint 12.2
        raise NotImplementedError(
            "Lab 12.2 RequestTimes.queue, RequestTimes.e2e; hint: minillm labs hint 12.2"
        )

    @property
    def e2e(self) -> float:
        """Seconds to the end, or to the newest token of an unfinished request."""
        # Stuck? minillm labs hint 12.2
        raise NotImplementedError(
            "Lab 12.2 RequestTimes.queue, RequestTimes.e2e; hint: minillm labs hint 12.2"
        )

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token of the first sample."""
        # Stuck? minillm labs hint 12.3
        raise NotImplementedError(
            "Lab 12.3 RequestTimes.ttft, RequestTimes.tpot, RequestTimes.itl; hint: minillm labs hint 12.3"
        )

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token of the first sample, after its first token."""
        # Stuck? minillm labs hint 12.3
        raise NotImplementedError(
            "Lab 12.3 RequestTimes.ttft, RequestTimes.tpot, RequestTimes.itl; hint: minillm labs hint 12.3"
        )

    @property
    def itl(self) -> list[float]:
        """Seconds between the tokens of the first sample."""
        # Stuck? minillm labs hint 12.3
        raise NotImplementedError(
            "Lab 12.3 RequestTimes.ttft, RequestTimes.tpot, RequestTimes.itl; hint: minillm labs hint 12.3"
        )


def merged_percentile(workers: Iterable[Sequence[float]], share: float) -> float:
    """The percentile of the values of several workers together; each has its values in a list.

    It is the smallest value of all such that at least `share` (0 to 1) of all values are not larger. So it is
    always one of the values, and nothing is interpolated. A worker with more values counts more, one without
    values not at all. The lists stay as they are.

    The values may be sorted once. The work may not grow faster than that.

    Raises:
        ValueError: no worker has a value.
    """
    # Stuck? minillm labs hint 12.4
    raise NotImplementedError("Lab 12.4 merged_percentile; hint: minillm labs hint 12.4")


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
    # Stuck? minillm labs hint 12.5
    raise NotImplementedError("Lab 12.5 goodput; hint: minillm labs hint 12.5")


def memory_use(events: Iterable[Event]) -> MemoryUse:
    """The fragmentation and the headroom over the `step` events of a trace.

    Of a step: `event["slots"]` are allocated, `event["waste"]` of them have no token. Cached blocks are
    headroom too: they are evicted when room is needed. `fragmentation` is over the slots of all steps
    together, so a step with more slots counts more. Steps without slots have no share. Of equal shares the
    first step is the worst. Without a step: `MemoryUse()`; without slots: no worst step.

    The work may grow with the events, but not faster.
    """
    # Stuck? minillm labs hint 12.6
    raise NotImplementedError("Lab 12.6 memory_use; hint: minillm labs hint 12.6")


def diagnose(events: Iterable[Event]) -> Finding:
    """Find the incident of a trace, and its cause.

    *The incident.* In a step sequences wait if `event["held"]` is not empty: it counts them by what the first
    of them lacks, as {"blocks": 3}. The incident is the longest run of `step` events one after the other in
    which sequences wait; of equally long runs, the first. If it has fewer than `PATIENCE` steps, the finding
    is `Finding("none")`. It begins at its first step. Its peak is the largest number that waited in a step of
    it, and was reached at the first such step.

    *The burst.* The queue grew from the `step` event before the incident (if there is none, from the first
    event of the trace) to the `step` event of the peak. Count the `queue` events between these two, and the
    seconds. The usual rate is that of the whole trace: the number of `queue` events divided by the seconds
    from the first of them to the last, or 0 if these are 0 s. If more requests came than at the usual rate,
    and this excess is more than half of the peak, the culprit is "burst".

    *Otherwise* it is what was lacking in more steps of the incident: "memory" if it was blocks, and
    "batching" if it was something else. Equally often: "batching".

    The work may grow with the number of events, but not faster.
    """
    # Stuck? minillm labs hint 12.7
    raise NotImplementedError("Lab 12.7 diagnose; hint: minillm labs hint 12.7")
