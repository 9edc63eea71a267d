"""A run as it happens, in a terminal: queue, batch, memory and latencies.

    waiting 12   running 8   step 9.1 ms      the newest step
    blocks  ████████▒▒▒▒▒▒▒▒········          in use, cached, free: the whole pool
    ttft    p50 31 ms   p99 120 ms            of the newest tokens, from submission

A listener of the events keeps numbers. The picture is drawn between two steps, four times a second at most.
Drawing takes a few milliseconds of the thread that steps, so it costs what it shows: leave it out of a run
whose figures are kept. The report says whether it was on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from minillm.engine.engine import Engine
from minillm.observe.events import Event
from minillm.observe.metrics import percentile

SECONDS_BETWEEN = 0.25
NEWEST = 500  # tokens whose latencies are shown
WIDTH = 60  # characters of the block map


class LiveState:
    """What the events have said so far."""

    def __init__(self, title: str, num_blocks: int) -> None:
        self.title, self.num_blocks = title, num_blocks
        self.step: Event | None = None
        self.ended = 0
        self._last: dict[str, float] = {}  # submission or newest token of each request
        self._has_token = set[str]()
        self._ttft, self._itl = deque[float](maxlen=NEWEST), deque[float](maxlen=NEWEST)

    def __call__(self, event: Event) -> None:
        """Take an event: this is the listener."""
        if event.kind == "step":
            self.step = event
        elif event.kind == "queue":
            self._last[event.request_id] = event.time
        elif event.kind == "sample":
            for request_id, _ in event["requests"]:
                self._take_token(request_id, event.time)
        elif event.kind == "finish":
            self.ended += 1
            self._last.pop(event.request_id, None)
            self._has_token.discard(event.request_id)

    def frame(self) -> RenderableType:
        """The picture now."""
        step, lines = self.step, [Text(self.title, style="bold")]
        if step is not None:
            counts = f"waiting {step['waiting']:<5} running {step['running']:<4} ended {self.ended:<6}"
            rows = f"step {step['seconds'] * 1e3:.1f} ms: {step['prefill_tokens']} prefill, "
            lines.append(Text(f"{counts} {rows}{step['decode_rows']} decode"))
            lines.append(block_map(step["used"], step["cached"], self.num_blocks))
        lines.append(Text(f"ttft    {_shares(self._ttft)}\nitl     {_shares(self._itl)}"))
        return Group(*lines)

    def _take_token(self, request_id: str, now: float) -> None:
        before = self._last.get(request_id)
        if before is None:  # it was submitted before anybody listened
            return
        (self._itl if request_id in self._has_token else self._ttft).append(now - before)
        self._has_token.add(request_id)
        self._last[request_id] = now


def block_map(used: int, cached: int, num_blocks: int) -> Text:
    """The pool as a bar: blocks in use, blocks of the prefix cache that nobody uses, and free ones."""
    filled = round(used / num_blocks * WIDTH)
    kept = round((used + cached) / num_blocks * WIDTH) - filled
    bar = "█" * filled + "▒" * kept + "·" * (WIDTH - filled - kept)
    return Text(f"blocks  {bar} {used} used, {cached} cached of {num_blocks}")


@contextmanager
def live_view(engine: Engine, title: str, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Show the engine's events during the `with`. Gives what to call after each step."""
    state, drawn = LiveState(title, engine.pool.num_blocks), [0.0]
    engine.events.listeners.append(state)
    try:
        with Live(state.frame(), console=console, auto_refresh=False, transient=True) as live:

            def draw() -> None:
                if state.step is not None and state.step.time - drawn[0] >= SECONDS_BETWEEN:
                    drawn[0] = state.step.time
                    live.update(state.frame(), refresh=True)

            yield draw
    finally:
        engine.events.listeners = [listener for listener in engine.events.listeners if listener is not state]


def _shares(seconds: deque[float]) -> str:
    if not seconds:
        return "no token yet"
    values = list(seconds)
    return "   ".join(f"p{share} {percentile(values, share / 100) * 1e3:.1f} ms" for share in (50, 90, 99))
