"""Whether the events of a trace that came from anywhere can be those of one engine.

Each line for itself may be right (`trace_schema.py`) while two of them contradict each other: a token that
came before its request, a request that was queued twice, more blocks than the pool has. Latencies would be
negative then, and the parts of a sum would not add up to it. What an engine guarantees is asked for here:

    clock <= every time              of a request: queued <= all else
    tokens come in order             used + cached + free = the pool

Other times may go back a little: an end is noted with the time at which its step collected it.
"""

from __future__ import annotations

from minillm.observe.events import Event


class Order:
    """Follows the events of one trace. `clock`: the time of its header; `num_blocks`: its pool."""

    def __init__(self, clock: float, num_blocks: int) -> None:
        self._clock, self._sampled, self._num_blocks = clock, clock, num_blocks
        self._queued: dict[str, float] = {}

    def wrong(self, event: Event) -> str | None:
        """What of the next event contradicts those before it; None if nothing does."""
        if event.time < max(self._clock, self._queued.get(event.request_id, self._clock)):
            return "time"
        match event.kind:
            case "queue":
                if not event.request_id or event.request_id in self._queued:
                    return "request_id"
                self._queued[event.request_id] = event.time
            case "sample":
                return self._wrong_sample(event)
            case "step" if event["used"] + event["cached"] + event["free"] != self._num_blocks:
                return "the number of blocks"
        return None

    def _wrong_sample(self, event: Event) -> str | None:
        newest = max((self._queued.get(request_id, 0.0) for request_id, _ in event["requests"]), default=0.0)
        if event.time < max(newest, self._sampled):
            return "time"
        self._sampled = event.time
        return None
