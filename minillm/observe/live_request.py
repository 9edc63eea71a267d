"""A request that has not ended, as far as latencies need it: times, counts, and where they are counted."""

from __future__ import annotations

from minillm.observe.events import Event
from minillm.observe.figures import Figures
from minillm.observe.tenant_use import TenantUse


class LiveRequest:
    """Made by `queue`. Times of tokens are those of the first sample; `forked` counts those of the others."""

    __slots__ = (
        "admitted", "cached", "done", "ended", "figures", "first", "forked", "last", "prompt", "reason",
        "samples", "submitted", "tokens", "use",
    )  # fmt: skip

    def __init__(self, event: Event, figures: Figures, use: TenantUse) -> None:
        self.submitted, self.figures, self.use = event.time, figures, use
        self.prompt: int = event["prompt_tokens"]
        self.samples: int = event["n"]
        self.done = set[int]()  # the samples that have ended
        self.admitted: float | None = None
        self.first = self.ended = 0.0
        self.last = -2.0  # no token yet
        self.cached = self.tokens = self.forked = 0
        self.reason = ""

    def end(self, index: int, reason: str, time: float) -> bool:
        """Sample `index` has ended; return whether all have. An interrupt can bring the same end twice."""
        if index < self.samples:
            self.done.add(index)
        self.ended = max(self.ended, time)
        if index == 0:
            self.reason = reason
        return len(self.done) == self.samples
