"""Makes a trace of conversations: what is new in each prompt is known, so the hit rate is known too.

    turn 1   [ system ][ new ]
    turn 2   [ system ][ new ][ new ........ ]            the prompt so far, and new blocks: the last answer,
    turn 3   [ system ][ new ][ new ........ ][ new ]     and the next question

Every prompt repeats all of the prompt before it. So with an unbounded cache only new blocks miss: the hit
rate is 1 - (distinct blocks) / (blocks). Conversations begin at random times and their turns mix.

Left out: what a real trace also has, such as days and nights, prompts that are sent twice, edited histories.
"""

from __future__ import annotations

from random import Random

from minillm.bench.cache_sim.trace import TraceRequest

BLOCK_TOKENS = 512
SYSTEM_BLOCKS = 2
MOST_NEW_BLOCKS = 12
ANSWER_TOKENS = 300
MEAN_MORE_TURNS = 3.0
MEAN_PAUSE_MS = 60_000.0
SPAN_MS = 3_600_000.0  # conversations begin within an hour


def conversations(count: int, seed: int = 0) -> list[TraceRequest]:
    """A trace of `count` conversations with one system prompt, in the order of arrival."""
    random = Random(seed)
    trace, made = [], SYSTEM_BLOCKS
    for _ in range(count):
        prompt, time = list(range(SYSTEM_BLOCKS)), random.random() * SPAN_MS
        for _ in range(1 + int(random.expovariate(1 / MEAN_MORE_TURNS))):
            new = random.randint(1, MOST_NEW_BLOCKS)
            prompt += range(made, made + new)
            made += new
            trace.append(TraceRequest(int(time), len(prompt) * BLOCK_TOKENS, ANSWER_TOKENS, tuple(prompt)))
            time += random.expovariate(1 / MEAN_PAUSE_MS)
    return sorted(trace)
