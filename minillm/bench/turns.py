"""Engines with and without drafts on the same work, in turns: the speed-up is a ratio of neighbouring runs.

Each round times an engine without drafts and one with drafts, directly after each other. The next round has
the opposite order. The result is the median of the rounds' ratios. The answers are compared too: with the
native kernels no token may differ (contract C7); with the reference backend rounding can change a token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minillm.bench.machine import Figure
from minillm.config import SamplingParams
from minillm.llm import LLM
from minillm.observe.events import Event
from minillm.speculation.proposal import Drafter, DraftSequence

Load = Callable[..., LLM]


DEPTH = 5  # tokens of a scripted draft
HEROES = ("little girl", "brave knight", "small bird", "old king", "red fox", "boy named Tim", "cat", "bear")
OPENINGS = (
    "Once upon a time there was a",
    "In a big forest there lived a",
    "One day a",
    "Everybody knew the",
)
STORIES = [f"{opening} {hero} who" for hero in HEROES for opening in OPENINGS]
COPY = "The wind blew and the kite went up and up. " * 16  # the model that ships repeats a sentence after it


@dataclass(frozen=True)
class Work:
    """Prompts to answer greedily with `tokens` tokens each, `batch` prompts at a time."""

    prompts: Sequence[str | Sequence[int]]
    tokens: int
    batch: int = 1

    def run(self, llm: LLM) -> list[list[int]]:
        """The answers."""
        params = SamplingParams(max_tokens=self.tokens, temperature=0, ignore_eos=True)
        batches = [self.prompts[i : i + self.batch] for i in range(0, len(self.prompts), self.batch)]
        return [output.token_ids for batch in batches for output in llm.generate(list(batch), params)]

    def seconds(self, llm: LLM) -> tuple[float, list[list[int]]]:
        """The seconds that the answers took, and the answers."""
        start = time.perf_counter()
        answers = self.run(llm)
        return time.perf_counter() - start, answers

    def events(self, llm: LLM) -> list[Event]:
        """The events while the answers were generated."""
        with llm.engine.events.record() as events:
            self.run(llm)
        return events


@dataclass(frozen=True)
class Bench:
    """`load(**options)` makes an engine; each is compared with `plain`, which does not draft."""

    load: Load
    plain: LLM
    draft_model: str
    tokens: int
    runs: int

    @property
    def stories(self) -> Work:
        """A few beginnings of stories, one after another."""
        return Work(STORIES[:4], self.tokens)

    def scripted(self, make: Callable[[int], Drafter], **options: Any) -> LLM:
        """An engine with the drafter `make(vocab_size)`."""
        parts = {"drafter": lambda model, config: make(model.config.vocab_size)}
        return self.load(parts=parts, num_draft_tokens=DEPTH, **options)


def script_of(plain: LLM, work: Work) -> Callable[[DraftSequence], list[int]]:
    """The answers of `plain`, as a script for drafters."""
    tokenizer = plain.tokenizer
    prompts = [tuple(tokenizer.encode(p) if isinstance(p, str) else p) for p in work.prompts]
    answers = dict(zip(prompts, work.run(plain), strict=True))
    return lambda sequence: answers[tuple(sequence.prompt_token_ids)]


def speed_up(plain: LLM, drafting: LLM, work: Work, runs: int) -> dict[str, Any]:
    """The speed-up with drafts, as the median of `runs` rounds; and whether all answers were the same."""
    ratios, is_same = list[float](), True
    for i in range(runs + 1):
        order = (plain, drafting) if i % 2 else (drafting, plain)
        timed = {id(llm): work.seconds(llm) for llm in order}
        (without, answers), (with_drafts, others) = timed[id(plain)], timed[id(drafting)]
        is_same &= answers == others
        ratios.append(without / with_drafts)
    ratios = ratios[1:]  # the first round warms up
    found = Figure(statistics.median(ratios), min(ratios), max(ratios), runs)
    return {**asdict(found), "same_answers": is_same}


def expected_tokens(acceptance: float, drafted: int) -> float:
    """Tokens per step if each of `drafted` tokens has this acceptance (Leviathan et al., 2211.17192)."""
    if acceptance >= 1:
        return drafted + 1.0
    return float((1 - acceptance ** (drafted + 1)) / (1 - acceptance))


def decode_seconds(events: Sequence[Event]) -> float:
    """Median seconds of the steps that only decoded."""
    return statistics.median(
        float(e["seconds"])
        for e in events
        if e.kind == "step" and e["decode_rows"] and not e["prefill_tokens"]
    )


def level_seconds(events: Sequence[Event]) -> float:
    """Median seconds of one level of a draft; 0 if nothing was drafted."""
    levels = [
        event["draft_seconds"] / longest
        for event in events
        if event.kind == "speculate" and (longest := max(depth for _, depth, _ in event["outcomes"]))
    ]
    return statistics.median(levels) if levels else 0.0


def token_acceptance(events: Sequence[Event]) -> float:
    """How often a drafted token is accepted if all before it are: the `acceptance` of `expected_tokens`."""
    outcomes = [outcome for event in events if event.kind == "speculate" for outcome in event["outcomes"]]
    seen = sum(min(depth, accepted + 1) for _, depth, accepted in outcomes)
    return sum(accepted for _, _, accepted in outcomes) / seen if seen else 0.0
