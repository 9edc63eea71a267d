"""What speculation did in a run, from its events: how much stood, how far, and where the time went.

    position      1     2     3     4          of the tokens drafted for each place behind the newest,
    stood       86 %  74 %  63 %  55 %         how many stand: each needs all before it

A speculative step has three parts: the drafter's time, the target's (with the verification), and the rest,
which is bookkeeping: planning, building batches, appending, giving back. Steps that also prefill are not
counted for the times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from minillm.observe.events import Event


@dataclass
class SpeculationSummary:
    """Counts over all speculative steps; seconds over those without a prefill."""

    drafted: int = 0
    accepted: int = 0
    verifications: int = 0  # sequences in steps: each got one token, and those of its draft that stood
    drafted_at: Counter[int] = field(default_factory=Counter)  # by position, 1 is the first
    accepted_at: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that stood."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Tokens a sequence got from one pass of the target."""
        return 1 + self.accepted / self.verifications if self.verifications else 0.0

    @property
    def acceptance_by_position(self) -> list[float]:
        """For each place of a draft the share of its tokens that stood."""
        return [self.accepted_at[i] / self.drafted_at[i] for i in sorted(self.drafted_at)]

    @property
    def bookkeeping_seconds(self) -> float:
        """Time in neither of the two models."""
        return self.seconds - self.draft_seconds - self.verify_seconds


def summarize_speculation(events: Iterable[Event]) -> SpeculationSummary:
    """The figures of a trace."""
    result, prefilled, current = SpeculationSummary(), False, None
    for event in events:
        if event.kind == "prefill_chunk":
            prefilled = True
        elif event.kind == "speculate":
            current = event
            for drafted, depth, accepted in event["outcomes"]:
                result.drafted += drafted
                result.accepted += accepted
                result.verifications += 1
                result.drafted_at.update(range(1, depth + 1))
                result.accepted_at.update(range(1, accepted + 1))
        elif event.kind == "step":
            if current and not prefilled:
                result.seconds += event["seconds"]
                result.draft_seconds += current["draft_seconds"]
                result.verify_seconds += current["verify_seconds"]
            prefilled, current = False, None
    return result
