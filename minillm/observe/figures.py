"""What is counted of a period of a run: histograms of times and sizes, and counters.

An engine has two periods. `warmup` is what happens while `LLM.warmup` runs, `steady` is everything else.
First calls are slow, and a percentile that has them in it says nothing about the rest.

    begin      end
      | warmup  |        figures of requests queued, and of steps that ended, in here
    --+---------+-----   steady: all others
"""

from __future__ import annotations

from collections import Counter
from itertools import chain

from minillm.observe.histogram import Histogram

# Upper bounds of the buckets that Prometheus gets, in seconds, tokens and sequences.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 262144)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1)

LATENCIES = ("ttft", "tpot", "itl", "queue", "e2e")


class Figures:
    """The figures of one period.

    Attributes:
        ttft, tpot, itl, queue, e2e: seconds, as `RequestMetrics` defines them. `ttft` and `itl` are recorded
            when a token comes, the others when a request has ended.
        prompt_sizes, output_sizes: tokens of each request that has ended; output tokens of all n samples.
        step_seconds, step_tokens, batch: of each step: its time, the rows it computed (those of drafts
            included), and the sequences that it computed rows of.
        fragmentation: of each step that ended with allocated slots, the share of them without a token.
        requests, finished: requests queued; and ended, by the reason of the first sample.
        prompt_tokens, cached_tokens: of requests that were admitted, counted at their first token or end.
        prefill_tokens: tokens computed by prefill, again after a preemption.
        held: waiting sequences by what the first of them lacked, summed over steps.
        depths, accepted_lengths: how many drafts had this depth, and this many accepted tokens.
        flops, read_bytes, written_bytes: estimated (`model/step_costs.py`).
    """

    def __init__(self) -> None:
        self.ttft, self.tpot, self.itl, self.queue, self.e2e = (Histogram(SECONDS) for _ in LATENCIES)
        self.prompt_sizes, self.output_sizes = Histogram(TOKENS), Histogram(TOKENS)
        self.step_seconds, self.step_tokens = Histogram(SECONDS), Histogram(TOKENS)
        self.batch, self.fragmentation = Histogram(SEQUENCES), Histogram(SHARES)
        self.requests = self.preemptions = 0
        self.finished, self.refused, self.evicted = Counter[str](), Counter[str](), Counter[str]()
        self.held = Counter[str]()
        self.prompt_tokens = self.cached_tokens = self.prefill_tokens = self.output_tokens = 0
        self.drafted = 0
        self.depths, self.accepted_lengths = Counter[int](), Counter[int]()
        self.flops = self.read_bytes = self.written_bytes = 0
        self.peak_used_blocks = 0
        self._past_seconds = 0.0
        self._first: float | None = None
        self._last: float | None = None

    # Time -----------------------------------------------------------------------------------

    def span(self, start: float, end: float | None = None) -> None:
        """Something happened from `start` on; a step ended at `end`."""
        if self._first is None or start < self._first:
            self._first = start
        if end is not None and (self._last is None or end > self._last):
            self._last = end

    def pause(self) -> None:
        """The period is interrupted: the time until it goes on is not its own."""
        self._past_seconds, self._first, self._last = self.wall_seconds, None, None

    @property
    def wall_seconds(self) -> float:
        """Seconds from the first request or step to the end of the newest step, idle time included."""
        if self._first is None or self._last is None:
            return self._past_seconds
        return self._past_seconds + self._last - self._first

    @property
    def busy_seconds(self) -> float:
        """Seconds spent in steps."""
        return self.step_seconds.sum

    @property
    def tokens_per_wall_second(self) -> float:
        """Effective throughput: output tokens per second of wall time."""
        return self.output_tokens / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def tokens_per_busy_second(self) -> float:
        """Output tokens per second spent in steps."""
        return self.output_tokens / self.busy_seconds if self.step_seconds.count else 0.0

    # Shares ---------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Completed steps."""
        return self.step_seconds.count

    @property
    def hit_rate(self) -> float:
        """The share of the admitted prompt tokens that were found in the prefix cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def accepted(self) -> int:
        """Draft tokens that were accepted."""
        return sum(length * count for length, count in self.accepted_lengths.copy().items())

    @property
    def acceptance(self) -> float:
        """The share of draft tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def accepted_at(self) -> dict[int, int]:
        """For each position of a draft (the first is 1) the number of accepted tokens."""
        lengths = self.accepted_lengths.copy()
        deepest = max(chain(self.depths.copy(), lengths), default=0)
        return {i: sum(n for length, n in lengths.items() if length >= i) for i in range(1, deepest + 1)}
