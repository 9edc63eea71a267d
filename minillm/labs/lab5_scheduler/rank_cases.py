"""Tasks 5.1 and 5.2, the order of sequences: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import ceil
from random import Random
from typing import Any

from minillm.engine.scheduler import AGING_SECONDS, WaitingLine, rank
from minillm.engine.sequence import Sequence
from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.serving import name
from minillm.labs.lab5_scheduler.costs import FIRST_COST, FIRST_TOO_MUCH, RANK_COST, RANK_TOO_MUCH
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


def fields_case(title: str, now: float, *turns: Turn) -> Case:
    """The three fields of each rank: a fork takes over the first two."""

    def run(rank_of: Callable[..., Any]) -> list[Any]:
        sequences = waiting_sequences(*turns)
        sequences.insert(0, replace(sequences[0], index=1))
        return [[_whole(field) for field in rank_of(sequence, now)] for sequence in sequences]

    return Case(f"{title}: {_shown(turns)} at {now:g} s", run)


def _whole(number: Any) -> Any:
    """A whole number as an int: 1.0 is as good as 1."""
    return int(number) if number == int(number) else number


_KEPT: list[Any] = []  # sequences stay alive, so that no two of them ever have the same `id`


def later(rank_of: Callable[..., Any]) -> list[Any]:
    """The same sequences at three times. Computing a rank changes nothing."""
    sequences = waiting_sequences((1, 4), (0, 11), (2, 0))
    _KEPT.extend(sequences)
    seen = [[list(map(_whole, rank_of(r, now))) for r in sequences] for now in (12, 40, 12)]
    return [*seen, [[r.rank, r.arrival, r.params.priority] for r in sequences]]


def more_ranks(random: Random) -> Iterator[Case]:
    """Random priorities and arrivals."""
    for i in range(4):
        turns = [(random.randrange(-3, 4), float(random.randrange(0, 60))) for _ in range(5)]
        yield fields_case(f"random sequences {i + 1}", 60.0, *sorted(turns, key=lambda turn: turn[1]))


def remembers(key: Callable[[Sequence], Any]) -> Callable[..., Any]:
    """Keeps the first rank of each sequence."""
    known: dict[Any, tuple[int, int, int]] = {}

    def wrong(sequence: Sequence, now: float) -> tuple[int, int, int]:
        _KEPT.append(sequence)
        return known.setdefault(key(sequence), rank(sequence, now))

    return wrong


def sets_rank(sequence: Sequence, now: float) -> tuple[int, int, int]:
    """Writes to the sequence."""
    sequence.rank = rank(sequence, now)
    return sequence.rank


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
    fields_case("the fields of the ranks", 30, (2, 11), (0, 29), (1, 19), (-1, 3)),
    fields_case("exactly one and two steps", 25, (1, 5), (1, 15), (1, 15.5)),
    Case("three sequences at 12 s, 40 s and 12 s again", later, "aliasing"),
    RANK_COST,
)
RANK_MISTAKES = (
    Mistake("priorities are ignored", lambda r, now: (r.order, r.index)),
    Mistake("the larger priority goes first: the smaller one must go first", rank_with(int, sign=-1)),
    Mistake("there is no aging: a low priority can wait for ever", rank_with(lambda age: 0)),
    Mistake("age makes a sequence go later: subtract it from the priority", rank_with(lambda age: -int(age))),
    Mistake("the age is rounded: only complete steps of AGING_SECONDS count", rank_with(round)),
    Mistake(
        "a step that is just complete does not count: 10 s are one step", rank_with(lambda a: ceil(a) - 1)
    ),
    Mistake(
        "age is subtracted in seconds: every complete AGING_SECONDS count as one priority",
        rank_with(lambda age: int(age * AGING_SECONDS)),
    ),
    Mistake("a rank is kept from an earlier time: it changes while a sequence waits", remembers(id)),
    Mistake("the sequence is changed: only return its rank", sets_rank),
    Mistake(
        "the arrival decides between equal priorities: use the submission (`order`)",
        lambda r, now: (rank(r, now)[0], r.arrival, r.index),
    ),
    Mistake("parts of AGING_SECONDS are counted: age counts in whole steps", rank_with(float)),
    Mistake(
        "samples of one request have equal ranks: the sample index comes last",
        lambda r, now: rank(r, now)[:2],
    ),
    *RANK_TOO_MUCH,
)


# --- 5.2 the waiting line ---------------------------------------------------------------------------


def looks_only(line_class: Any) -> list[Any]:
    """`first` twice, then after a better one has come, then after time has passed; nothing is removed."""
    line, seen = line_class(), list[Any]()
    low, high, old = waiting_sequences((1, 0), (0, 4), (3, 0))
    line.add(low)
    seen += [name(line.first(5)), name(line.first(5)), len(line)]
    line.add(high)
    seen += [name(line.first(5)), len(line)]
    line.add(old)
    seen += [name(line.first(now)) for now in (6, 34, 6)]
    line.remove(high)
    return [*seen, name(line.first(6)), len(line)]


def two_lines(line_class: Any) -> list[Any]:
    """Two waiting lines in turns, and a preempted sequence that comes back."""
    lines, seen = (line_class(), line_class()), list[Any]()
    sequences = waiting_sequences((0, 1), (0, 2), (1, 2), (0, 3))
    for i, sequence in enumerate(sequences):
        lines[i % 2].add(sequence)
    seen += [name(line.first(5)) for line in lines]
    lines[0].remove(sequences[0])
    seen.append(name(lines[0].first(5)))
    lines[0].add(sequences[0])
    return [*seen, *(name(line.first(5)) for line in lines)]


def more_firsts(random: Random) -> Iterator[Case]:
    """Random priorities and arrivals, called until the line is empty."""
    for i in range(4):
        turns = [(random.randrange(-2, 3), float(random.randrange(0, 60))) for _ in range(7)]
        yield first_case(f"random sequences {i + 1}", 60.0, *sorted(turns, key=lambda turn: turn[1]))


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


class RemovesIt(WaitingLine):
    """Takes the sequence out of the line."""

    def first(self, now: float) -> Sequence | None:
        sequence = super().first(now)
        if sequence is not None:
            self.remove(sequence)
        return sequence


class KeepsFirst(WaitingLine):
    """Finds the sequence once and returns it until it is removed."""

    _found: Sequence | None = None

    def first(self, now: float) -> Sequence | None:
        if self._found is None or all(self._found not in line for line in self._lines.values()):
            self._found = super().first(now)
        return self._found


class CallsByLine(WaitingLine):
    """Between equal priorities minus age, the line that was opened first decides."""

    def first(self, now: float) -> Sequence | None:
        heads = [line[0] for line in self._lines.values()]
        return min(heads, key=lambda r: rank(r, now)[0], default=None)


class CallsLongest(WaitingLine):
    """Returns the sequence that has waited longest."""

    def first(self, now: float) -> Sequence | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: r.arrival, default=None)


FIRST_CASES = (
    first_case("one line", 5, (0, 1), (0, 2), (0, 3)),
    first_case("three lines", 5, (2, 0), (0, 1), (1, 2), (0, 3)),
    first_case("one has waited long", 33, (2, 2), (0, 31), (1, 32)),
    first_case("an empty line", 5),
    first_case("equal after aging", 30, (0, 2), (1, 20), (0, 22)),
    first_case("arrival and submission differ", 30, (1, 4), (0, 3), (0, 2)),
    Case("first twice, then others come and time passes", looks_only, "aliasing"),
    Case("two waiting lines in turns", two_lines, "aliasing"),
    FIRST_COST,
)
FIRST_MISTAKES = (
    Mistake("the first submitted is returned, whatever its priority: compare ranks at `now`", CallsTheOldest),
    Mistake(
        "a line of low priority must wait until the others are empty: compare ranks at `now`",
        CallsTheFirstLine,
    ),
    Mistake("the newest of a line is returned: a line is in order of submission", CallsTheNewest),
    Mistake("`sequence.rank` is from an earlier step: use `rank(sequence, now)`", CallsByOldRank),
    Mistake("the sequence is removed from its line: `first` only looks", RemovesIt),
    Mistake("an earlier answer is kept: a better sequence may have come, or time has passed", KeepsFirst),
    Mistake("between equal priorities minus age, the submission must decide: compare ranks", CallsByLine),
    Mistake("the longest waiting is returned, whatever its priority: compare ranks at `now`", CallsLongest),
    Mistake("it fails if no sequence waits: return None", ExpectsSomebody),
    *FIRST_TOO_MUCH,
)
