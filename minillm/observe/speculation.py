"""Metrics of speculation in a run, computed from its events: acceptance, by position, and times.

    position      1     2     3     4          the share of the tokens drafted at each position after the
    accepted    86 %  74 %  63 %  55 %         newest that were accepted; each needs all before it

The time of a speculative step has three parts: drafting, the target pass with verification, and bookkeeping
(planning, building batches, appending tokens, freeing blocks). The times of steps that also prefill are not
counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from minillm.observe.events import Event


@dataclass
class SpeculationSummary:
    """Counts over all speculative steps; times over those without prefill."""

    drafted: int = 0
    accepted: int = 0
    verifications: int = 0  # verified sequences, summed over steps; each got one token more than accepted
    drafted_at: Counter[int] = field(default_factory=Counter)  # by position; the first is 1
    accepted_at: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    @property
    def acceptance(self) -> float:
        """The share of draft tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens a sequence got from one pass of the target."""
        return 1 + self.accepted / self.verifications if self.verifications else 0.0

    @property
    def acceptance_by_position(self) -> list[float]:
        """For each position of a draft, the share of its tokens that were accepted."""
        return [self.accepted_at[i] / self.drafted_at[i] for i in sorted(self.drafted_at)]

    @property
    def bookkeeping_seconds(self) -> float:
        """Time spent in neither of the two models."""
        return self.seconds - self.draft_seconds - self.verify_seconds


def summarize_speculation(events: Iterable[Event]) -> SpeculationSummary:
    """Compute the speculation metrics of a trace."""
    result, prefilled, current = SpeculationSummary(), False, None
    depths, lengths = Counter[int](), Counter[int]()
    for event in events:
        if event.kind == "prefill_chunk":
            prefilled = True
        elif event.kind == "speculate":
            current = event
            for drafted, depth, accepted in event["outcomes"]:
                result.drafted += drafted
                result.accepted += accepted
                result.verifications += 1
                depths[depth] += 1
                lengths[accepted] += 1
        elif event.kind == "step":
            if current and not prefilled:
                result.seconds += event["seconds"]
                result.draft_seconds += current["draft_seconds"]
                result.verify_seconds += current["verify_seconds"]
            prefilled, current = False, None
    result.drafted_at, result.accepted_at = _by_position(depths), _by_position(lengths)
    return result


def _by_position(lengths: Counter[int]) -> Counter[int]:
    """From how many drafts had each length: how many had a token at each position."""
    found, left = Counter[int](), lengths.total() - lengths[0]
    for position in range(1, max(lengths, default=0) + 1):
        found[position] = left
        left -= lengths[position]
    return found
