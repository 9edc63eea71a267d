"""Tasks 5.1 and 5.2, the order of sequences: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from minillm.engine.scheduler import AGING_SECONDS, WaitingLine, rank
from minillm.engine.sequence import Sequence
from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.serving import name
from minillm.labs.lab5_scheduler.plan_cases import waiting_sequence

Turn = tuple[int, float]  # priority, arrival


def waiting_sequences(*turns: Turn) -> list[Sequence]:
    """Sequences with these priorities and arrivals, submitted in this order."""
    return [waiting_sequence(i, *turn) for i, turn in enumerate(turns)]


def _shown(turns: Iterable[Turn]) -> str:
    return ", ".join(f"{'abcdefgh'[i]} of priority {p} since {t:g} s" for i, (p, t) in enumerate(turns))


# --- 5.1 rank ---------------------------------------------------------------------------------------


def rank_case(title: str, now: float, *turns: Turn) -> Case:
    """The order of the sequences by their ranks; the second of two samples comes after the first."""

    def run(rank_of: Callable[..., Any]) -> list[str]:
        sequences = waiting_sequences(*turns)
        sequences.insert(0, replace(sequences[0], index=1))
        return [name(r) for r in sorted(sequences, key=lambda r: rank_of(r, now))]

    return Case(f"{title}: {_shown(turns)} at {now:g} s", run)


def rank_with(age: Callable[[float], Any], sign: int = 1) -> Callable[..., Any]:
    """`rank` with another function of the age (in units of AGING_SECONDS), or another sign of priority."""

    def wrong(sequence: Sequence, now: float) -> tuple[Any, int, int]:
        aged = age((now - sequence.arrival) / AGING_SECONDS)
        return sign * sequence.params.priority - aged, sequence.order, sequence.index

    return wrong


RANK_CASES = (
    rank_case("equal priorities", 5, (0, 1), (0, 2), (0, 3)),
    rank_case("priorities", 5, (2, 0), (0, 1), (1, 2)),
    rank_case("one has waited long", 33, (2, 2), (0, 31), (2, 25)),
    rank_case("one has almost waited long enough", 30, (2, 11), (0, 29), (1, 19)),
)
RANK_MISTAKES = (
    Mistake("priorities are ignored", lambda r, now: (r.order, r.index)),
    Mistake("the larger priority goes first: the smaller one must go first", rank_with(int, sign=-1)),
    Mistake("there is no aging: a low priority can wait for ever", rank_with(lambda age: 0)),
    Mistake("age makes a sequence go later: subtract it from the priority", rank_with(lambda age: -int(age))),
    Mistake("parts of AGING_SECONDS are counted: age counts in whole steps", rank_with(float)),
    Mistake(
        "samples of one request have equal ranks: the sample index comes last",
        lambda r, now: rank(r, now)[:2],
    ),
)


# --- 5.2 the waiting line ---------------------------------------------------------------------------


def first_case(title: str, now: float, *turns: Turn) -> Case:
    """The sequences in the order in which the waiting line returns them, until it is empty."""

    def run(line_class: Any) -> list[Any]:
        line, called = line_class(), list[Any]()
        for sequence in waiting_sequences(*turns):
            line.add(sequence)
        while (sequence := line.first(now)) is not None and len(called) < len(turns):
            called.append(name(sequence))
            line.remove(sequence)
        return [called, sequence]

    return Case(f"{title}: {_shown(turns)} at {now:g} s", run)


class CallsTheOldest(WaitingLine):
    """Returns the sequence that was submitted first."""

    def first(self, now: float) -> Sequence | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: r.order, default=None)


class CallsTheFirstLine(WaitingLine):
    """The best priority always goes first, even if others have waited long."""

    def first(self, now: float) -> Sequence | None:
        return self._lines[min(self._lines)][0] if self._lines else None


class CallsTheNewest(WaitingLine):
    """Returns the newest sequence of a line."""

    def first(self, now: float) -> Sequence | None:
        return min((line[-1] for line in self._lines.values()), key=lambda r: rank(r, now), default=None)


class CallsByOldRank(WaitingLine):
    """Uses the rank that a sequence got when it was admitted."""

    def first(self, now: float) -> Sequence | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: r.rank, default=None)


class ExpectsSomebody(WaitingLine):
    """Fails if no sequence waits."""

    def first(self, now: float) -> Sequence | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: rank(r, now))


FIRST_CASES = (
    first_case("one line", 5, (0, 1), (0, 2), (0, 3)),
    first_case("three lines", 5, (2, 0), (0, 1), (1, 2), (0, 3)),
    first_case("one has waited long", 33, (2, 2), (0, 31), (1, 32)),
    first_case("an empty line", 5),
)
FIRST_MISTAKES = (
    Mistake("the first submitted is returned, whatever its priority: compare ranks at `now`", CallsTheOldest),
    Mistake(
        "a line of low priority must wait until the others are empty: compare ranks at `now`",
        CallsTheFirstLine,
    ),
    Mistake("the newest of a line is returned: a line is in order of submission", CallsTheNewest),
    Mistake("`sequence.rank` is from an earlier step: use `rank(sequence, now)`", CallsByOldRank),
    Mistake("it fails if no sequence waits: return None", ExpectsSomebody),
)
