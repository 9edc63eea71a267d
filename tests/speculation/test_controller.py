"""The controller's rules, one by one, on a clock that is made up; and what the engine tells it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import drafting
import pytest
import torch
from clock import Sequence, compute_bound, memory_bound, simulate

from minillm import SamplingParams
from minillm.errors import PartError
from minillm.speculation.controller import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    PLAIN_EVERY,
    PLAIN_SAMPLES,
    PROBE,
    REVIEW_EVERY,
    Controller,
    PassTimes,
)
from minillm.speculation.draft_model import DraftModel
from minillm.speculation.lookahead import Speculation
from minillm.speculation.ngram import LONGEST, SHORTEST, NgramIndex
from minillm.speculation.proposal import NO_PROPOSAL, Lookahead, Proposal
from minillm.speculation.state import Acceptance, DraftState
from minillm.worker.step import VerifyResult

# ---- what is measured -----------------------------------------------------------------------------


def test_the_first_measurement_counts_whole_and_later_ones_a_fifth() -> None:
    times = PassTimes()
    assert times.of(3) == 0.0 == times.in_proportion(3) and times.samples(3) == 0
    times.add(8, 1.0)
    assert times.of(8) == pytest.approx(1.0) and times.samples(8) == 1
    times.add(8, 1.5)
    assert times.of(8) == pytest.approx(1.1) and times.samples(8) == 2
    times.add(8, 100.0)  # far off: as if it had been twice as long as known
    assert times.of(8) == pytest.approx(1.1 + 0.2 * 1.1)
    assert times.samples(9) == 0 and times.samples(16) == 0, "four classes to the octave"


def test_between_measurements_there_is_a_line_and_beyond_them_the_nearest() -> None:
    times = PassTimes()
    times.add(4, 1.0)
    times.add(12, 3.0)
    assert [times.of(rows) for rows in (1, 4, 6, 8, 12, 40)] == pytest.approx([1.0, 1.0, 1.5, 2.0, 3.0, 3.0])
    assert [times.in_proportion(rows) for rows in (2, 4, 8, 24)] == pytest.approx([0.5, 1.0, 2.0, 6.0])


def test_more_rows_never_take_less() -> None:
    times = PassTimes()
    for rows, seconds in ((1, 5.0), (4, 1.0), (16, 2.0)):
        times.add(rows, seconds)
    assert [times.of(rows) for rows in (1, 4, 16)] == pytest.approx([1.0, 1.0, 2.0])


def test_acceptance_begins_at_the_prior_and_forgets() -> None:
    known = Acceptance()
    assert known.rate(0.7) == pytest.approx(0.7)
    known.add(1, 2)  # with a prior that counts for two drafted tokens
    assert known.rate(0.7) == pytest.approx((1 + 1.4) / (2 + 2))
    known.add(0, 128)
    fade = math.exp(-1)
    assert known.rate(0.5) == pytest.approx((fade + 1) / (2 * fade + 128 + 2))
    for stood, rate in ((1e9, 0.999), (0, 0.001)):
        extreme = Acceptance()
        extreme.add(stood, 10**9)  # type: ignore[arg-type]
        assert extreme.rate(0.5) == pytest.approx(rate)


@pytest.mark.parametrize(("drafted", "stood", "seen"), [(5, 0, 1), (5, 2, 3), (5, 5, 5), (1, 1, 1)])
def test_tokens_behind_the_first_wrong_one_were_not_looked_at(drafted: int, stood: int, seen: int) -> None:
    controller, sequence = Controller(5), Sequence(0.0)
    controller.record_result(sequence, drafted, stood)  # type: ignore[arg-type]
    assert sequence.draft.acceptance.rate(0.5) == pytest.approx((stood + 1) / (seen + 2))


# ---- what follows from it -------------------------------------------------------------------------


def test_pauses_double_and_one_sequence_probes() -> None:
    """Where drafts never pay: pauses of 4, 8, 16 ... steps, and a look around after each."""
    sequences = [Sequence(0.0) for _ in range(3)]
    _, chosen = simulate(Controller(5), sequences, 14_000, compute_bound, lambda branches: 3e-4)
    drafting_steps = [i for i, depths in enumerate(chosen) if any(depths)]
    start = PLAIN_SAMPLES + REVIEW_EVERY
    assert drafting_steps[:REVIEW_EVERY] == list(range(PLAIN_SAMPLES, start))
    probes = drafting_steps[REVIEW_EVERY:]
    assert all(chosen[i] == [PROBE, 0, 0] for i in probes)
    gaps = [b - a - 1 for a, b in pairwise([start - 1, *probes])]
    doubled = [min(FIRST_PAUSE * 2**i, LONGEST_PAUSE) for i in range(len(gaps))]
    # Each with the step that decided on the pause; LONGEST_PAUSE several times.
    assert gaps == [pause + 1 for pause in doubled] and doubled.count(LONGEST_PAUSE) > 3


def test_a_probe_is_no_longer_than_a_draft() -> None:
    _, chosen = simulate(Controller(1), [Sequence(0.0)], 60, compute_bound, lambda branches: 3e-4)
    assert {depth for (depth,) in chosen} == {0, 1}


def test_a_plain_step_is_timed_again_now_and_then() -> None:
    _, chosen = simulate(Controller(5), [Sequence(0.95)], 1000, memory_bound, lambda branches: 1e-5)
    plain = [i for i, (depth,) in enumerate(chosen) if not depth]
    assert plain[:PLAIN_SAMPLES] == list(range(PLAIN_SAMPLES))
    assert {b - a for a, b in pairwise(plain[PLAIN_SAMPLES - 1 :])} == {PLAIN_EVERY + 1}


def test_between_two_reviews_the_lengths_stay() -> None:
    """As long as nothing new is known of the sequences."""
    sequences = [Sequence(a) for a in (0.95, 0.6, 0.05)]
    controller = Controller(6)
    simulate(controller, sequences, 160, memory_bound, lambda branches: 1e-5)
    chosen = [controller.choose(sequences) for _ in range(2 * REVIEW_EVERY)]  # type: ignore[arg-type]
    assert len({tuple(depths) for depths in chosen}) == 1
    assert chosen[0][0] == 6 > chosen[0][1] > chosen[0][2]


def test_other_numbers_of_sequences_are_reviewed_at_once() -> None:
    """What was best for two is not what is best for thirty-two."""

    def both(rows: int) -> float:
        return max(1e-3, 1e-4 * rows)

    controller, few, many = (
        Controller(5),
        [Sequence(0.9) for _ in range(2)],
        [Sequence(0.9) for _ in range(32)],
    )
    simulate(controller, many, 40, both, lambda branches: 1e-4)
    _, chosen = simulate(controller, few, 60, both, lambda branches: 1e-4)
    assert chosen[-1][0] > 2
    assert max(max(controller.choose(many)) for _ in range(3)) <= PROBE  # type: ignore[type-var]


# ---- what the engine tells it ---------------------------------------------------------------------


class Recording(Controller):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(5, adaptive=False)
        self.told: list[tuple[Any, ...]] = []

    def record_target(self, rows: int, seconds: float) -> None:
        self.told.append(("target", rows, seconds))

    def record_draft(self, rows: int, levels: int, seconds: float) -> None:
        self.told.append(("draft", rows, levels, seconds))

    def record_result(self, sequence: Any, drafted: int, stood: int) -> None:
        self.told.append(("result", drafted, stood))


def lanes(*drafted_before: int) -> list[Lookahead]:
    states = [SimpleNamespace(draft=DraftState(num_drafted=n)) for n in drafted_before]
    return [Lookahead(state, 5, [[0]]) for state in states]  # type: ignore[arg-type]


def test_times_of_usual_drafts_alone_are_learned() -> None:
    """Branches and levels of those that drafted; not where somebody drafts for the first time."""
    drafter = SimpleNamespace(settle=lambda *arguments: settled.append(arguments[2:]))
    settled: list[tuple[int, int]] = []
    proposals = [Proposal([[1, 2, 3], [4, 5]]), NO_PROPOSAL, Proposal([[7]])]
    results = [VerifyResult([4, 9], branch=1), VerifyResult([9]), VerifyResult([7, 8])]
    for before, is_usual in ((1, True), (0, False), (40, True)):
        controller = Recording()
        made = Speculation(drafter, controller, 2, 99, 50)  # type: ignore[arg-type]
        made.learn(lanes(3, 0, before), proposals, results, 0.5)
        assert controller.told == [
            ("result", 2, 1),
            ("result", 1, 1),
            *([("draft", 3, 2, 0.5)] if is_usual else []),
        ]
    assert settled == [(1, 1), (0, 1)] * 3
    controller = Recording()
    Speculation(drafter, controller, 2, 99, 50).learn(lanes(1), [NO_PROPOSAL], [results[1]], 0.5)  # type: ignore[arg-type]
    assert controller.told == [], "nothing was drafted"


def test_who_gets_nothing_is_drafted_for_no_more() -> None:
    drafter = SimpleNamespace(settle=lambda *arguments: None)
    asked = lanes(3, 3)
    made = Speculation(drafter, Recording(), 2, 99, 50)  # type: ignore[arg-type]
    made.learn(asked, [Proposal([[1]]), Proposal([[1]])], [VerifyResult([]), VerifyResult([2])], 0.5)
    assert [lane.sequence.draft.is_excluded for lane in asked] == [True, False]


@pytest.mark.parametrize(
    "branches", [[["x"]], [[1], ["x"]], [["x"], [1]], [[1, None]], [[1], 2], [[1.0]], [(1,)]], ids=str
)
def test_proposals_of_anything_but_ids_are_refused(branches: Any) -> None:
    drafter = SimpleNamespace(propose=lambda asked: [Proposal(branches) for _ in asked])
    made = Speculation(drafter, Recording(), 2, 99, 50)  # type: ignore[arg-type]
    lookahead = Lookahead(SimpleNamespace(), 5, [[0], [1]])  # type: ignore[arg-type]
    with pytest.raises(PartError, match="not a Proposal of token ids"):
        made.propose([lookahead])


@pytest.mark.parametrize(
    ("shape", "is_right"), [((2, 50), True), ((1, 50), False), ((2, 49), False), ((3, 50), False)]
)
def test_probabilities_have_a_row_for_each_token(shape: tuple[int, int], is_right: bool) -> None:
    drafter = SimpleNamespace(propose=lambda asked: [Proposal([[1, 49]], torch.ones(shape)) for _ in asked])
    made = Speculation(drafter, Recording(), 1, 99, 50)  # type: ignore[arg-type]
    lookahead = Lookahead(SimpleNamespace(), 2, [[0]])  # type: ignore[arg-type]
    if is_right:
        assert len(made.propose([lookahead])[0]) == 1
    else:
        with pytest.raises(PartError, match="probs"):
            made.propose([lookahead])


def test_the_engine_tells_rows_and_seconds(tmp_path: Path) -> None:
    """Of every decode pass its rows, drafted ones included; without a guess the blocks are given back."""
    target, _ = drafting.make_pair(tmp_path)
    llm = drafting.load(target, draft_model="ngram", num_draft_tokens=3)
    speculation, engine = llm.engine.speculation, llm.engine
    assert speculation is not None
    recording = speculation.controller = Recording()
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    for i in range(3):
        engine.add_request([5 + i, 9, 8, 5 + i, 9][: 5 - i], params)
    rows = list[int]()
    engine.events.listeners.append(
        lambda event: rows.append(event["rows"]) if event.kind in ("speculate", "decode_step") else None
    )
    size = engine.config.block_size
    while engine.has_unfinished_requests():
        engine.step()
        for sequence in engine.scheduler.running:
            assert len(sequence.block_table.block_ids) == -(-sequence.num_computed_tokens // size)
    told = [number for kind, number, *_ in recording.told if kind == "target"]
    assert all(isinstance(number, int) for number in told) and max(told) > 3
    assert sum(told) == sum(max(pair) for pair in _steps(rows))
    assert all(0 < seconds < 60 for kind, _, seconds in (t for t in recording.told if t[0] == "target"))


def _steps(rows: list[int]) -> list[list[int]]:
    """Events of one step: "decode_step", and "speculate" where anything was drafted, with more rows."""
    steps = list[list[int]]()
    for number in rows:
        if steps and len(steps[-1]) == 1 and number > steps[-1][0]:
            steps[-1].append(number)
        else:
            steps.append([number])
    return steps


# ---- drafters -------------------------------------------------------------------------------------


def test_the_draft_catches_up_with_who_is_nearly_there_first() -> None:
    """A long prompt gets what the others leave: `chunk` tokens, and two for each sequence."""
    drafter = DraftModel(None, 9, 9, 100, chunk=10, tree=(1, 1))  # type: ignore[arg-type]
    known = {"long": (60, 0), "near": (20, 19), "gap": (30, 27), "too long": (101, 99), "there": (7, 7)}
    asked = {}
    for name, (total, computed) in known.items():
        sequence = SimpleNamespace(
            num_tokens=total,
            draft=DraftState(num_computed_tokens=computed),
            tokens=lambda start, end: list(range(start, end)),
        )
        asked[name] = Lookahead(sequence, 2, [[0]])  # type: ignore[arg-type]
    caught = drafter._catch_up(list(asked.values()))
    names = [next(n for n, lookahead in asked.items() if lookahead is c.lookahead) for c in caught]
    assert names == ["near", "gap", "long"]
    assert [(c.rows.start, c.rows.end, c.depth) for c in caught] == [(19, 20, 2), (27, 30, 2), (0, 16, 0)]
    assert asked["long"].sequence.draft.num_computed_tokens == 16


@pytest.mark.parametrize(("total", "depth"), [(98, 2), (99, 2), (100, 1)])
def test_the_draft_stops_at_the_end_of_its_context(total: int, depth: int) -> None:
    drafter = DraftModel(None, 9, 9, 100, chunk=10, tree=(1, 1))  # type: ignore[arg-type]
    draft = DraftState(num_computed_tokens=total - 1)
    sequence = SimpleNamespace(
        num_tokens=total, draft=draft, tokens=lambda start, end: list(range(start, end))
    )
    (caught,) = drafter._catch_up([Lookahead(sequence, 2, [[0]])])  # type: ignore[arg-type]
    assert caught.depth == depth


def test_an_index_holds_ngrams_of_the_lengths_that_are_looked_up() -> None:
    index = NgramIndex()
    index.extend([1, 2, 3, 4, 5, 6, 7, 8] * 6)
    assert {len(ngram) for ngram in index._next} == set(range(SHORTEST, LONGEST + 1))
    for ngram, places in index._next.items():
        for place in places:
            assert index.tokens[place - len(ngram) : place] == list(ngram)
        assert list(places) == sorted(set(places)), "each place once, the latest last"
