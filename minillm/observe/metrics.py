"""Metrics of a run, computed from its events: latencies, hit rate, preemptions, fragmentation.

    submitted      admitted        first token   next      next  end
        | queue ----- | prefill ----- | --- itl --- | -- itl -- |  |
        | ttft ---------------------- |                            |
        | e2e ---------------------------------------------------- |

Only the trace is used (contract C8). The engine reads the clock once per event and uses the same number for
the event and for `RequestOutput.metrics`. So the numbers here are equal to those, to the last bit; a test
compares them. Latencies are given as percentiles, because a mean hides the slow tokens that users notice:
of 1,000 tokens, the ten slowest took at least as long as p99.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from minillm.observe.events import Event
from minillm.observe.speculation import SpeculationSummary, summarize_speculation


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
        return (self.latest if self.admitted is None else self.admitted) - self.submitted

    @property
    def e2e(self) -> float:
        """Seconds to the end, or to the newest token of an unfinished request."""
        return self.latest - self.submitted

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token of the first sample."""
        return self.tokens[0][0] - self.submitted if self.tokens[0] else None

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token of the first sample, after its first token."""
        first = self.tokens[0]
        return (first[-1] - first[0]) / (len(first) - 1) if len(first) > 1 else None

    @property
    def itl(self) -> list[float]:
        """Seconds between the tokens of the first sample."""
        return [later - earlier for earlier, later in pairwise(self.tokens[0])]


@dataclass
class Summary:
    """The metrics of a run; times in seconds."""

    requests: dict[str, RequestTimes]
    refused: int
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    prefill_tokens: int
    output_tokens: int
    evicted_blocks: int
    peak_used_blocks: int
    peak_waste: int
    steps: int
    speculation: SpeculationSummary

    @property
    def hit_rate(self) -> float:
        """The share of the admitted prompt tokens that were found in the prefix cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def ttft(self) -> list[float]:
        """Seconds to the first token of every request that got one."""
        return [r.ttft for r in self.requests.values() if r.ttft is not None]

    @property
    def itl(self) -> list[float]:
        """Seconds between tokens, over all requests."""
        return [gap for r in self.requests.values() for gap in r.itl]

    @property
    def tpot(self) -> list[float]:
        """Mean seconds per later token of every request that got a second one."""
        return [r.tpot for r in self.requests.values() if r.tpot is not None]

    @property
    def queue(self) -> list[float]:
        """Seconds from submission to admission of every request."""
        return [r.queue for r in self.requests.values()]

    @property
    def e2e(self) -> list[float]:
        """Seconds from submission to the end of every request."""
        return [r.e2e for r in self.requests.values()]

    def percentiles(self, shares: Sequence[float] = (0.5, 0.9, 0.95, 0.99)) -> dict[str, list[float]]:
        """The exact percentiles of each latency, by name; those without values are left out."""
        values = {name: getattr(self, name) for name in ("ttft", "tpot", "itl", "queue", "e2e")}
        return {name: [percentile(found, p) for p in shares] for name, found in values.items() if found}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` such that at least `share` (0 to 1) of them are not larger.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("percentile of no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def merged_percentile(workers: Iterable[Sequence[float]], share: float) -> float:
    """The percentile of the values of several workers together; each has its values in a list.

    It is the smallest value of all such that at least `share` (0 to 1) of all values are not larger. So it is
    always one of the values, and nothing is interpolated. A worker with more values counts more, one without
    values not at all. The lists stay as they are.

    The values may be sorted once. The work may not grow faster than that.

    Raises:
        ValueError: no worker has a value.
    """
    return percentile([value for values in workers for value in values], share)


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
    requests: dict[str, RequestTimes] = {}
    for event in events:
        request = requests.get(event.request_id)
        if event.kind == "queue":
            requests[event.request_id] = RequestTimes(event.time, event["prompt_tokens"])
        elif event.kind == "sample":
            for request_id, index in event["requests"]:
                if request_id in requests:
                    requests[request_id].tokens[index].append(event.time)
        elif event.kind == "admit" and request:
            request.admitted, request.cached_tokens = event.time, event["cached_tokens"]
        elif event.kind == "finish" and request:
            request.ends[event["index"]] = event.time
    return requests


def summarize(events: Iterable[Event]) -> Summary:
    """Compute the metrics of a trace."""
    total = defaultdict[str, int](int)
    events = list(events)
    requests = request_times(events)
    for event in events:
        kind = event.kind
        total[kind] += 1
        if kind == "prefill_chunk":
            total["prefill_tokens"] += event["end"] - event["start"]
        elif kind == "sample":
            total["output_tokens"] += len(event["requests"])
        elif kind == "speculate":
            _add_drafts(requests, event)
        elif kind == "evict":
            total["evicted_blocks"] += event["blocks"]
        elif kind == "step":
            total["peak_used_blocks"] = max(total["peak_used_blocks"], event["used"])
            total["peak_waste"] = max(total["peak_waste"], event["waste"])
    admitted = [request for request in requests.values() if request.admitted is not None]
    return Summary(
        requests=requests,
        prompt_tokens=sum(request.prompt_tokens for request in admitted),
        cached_tokens=sum(request.cached_tokens for request in admitted),
        refused=total["refuse"],
        preemptions=total["preempt"],
        steps=total["step"],
        speculation=summarize_speculation(events),
        **{
            name: total[name]
            for name in (
                "prefill_tokens",
                "output_tokens",
                "evicted_blocks",
                "peak_used_blocks",
                "peak_waste",
            )
        },
    )


def _add_drafts(requests: dict[str, RequestTimes], event: Event) -> None:
    """Add the tokens drafted and accepted in one `speculate` event to the requests."""
    for (request_id, _), (drafted, _, accepted) in zip(event["requests"], event["outcomes"], strict=True):
        if request_id in requests:
            requests[request_id].drafted += drafted
            requests[request_id].accepted += accepted
