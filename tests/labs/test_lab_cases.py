"""The cases of the labs: small memory, answers computed by hand, accepted and rejected drafts."""

import pytest
import torch

from minillm.labs.grader.registry import find_task
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.labs.lab9_speculation import engine_cases
from minillm.labs.lab9_speculation.distribution_cases import DISTRIBUTION_CASES, fit


@pytest.mark.parametrize(
    ("number", "case", "words"),
    [
        ("4.6", 1, ("preempt", "evict", "cached", "d1")),
        ("4.6", 2, ("preempt", "d1")),
        ("5.7", 1, ("preempt", "evict", "cached", "c2")),
        ("6.8", 1, ("evict", "cached")),
    ],
)
def test_cases_with_little_memory_preempt_and_evict(number, case, words):
    lab, task = find_task(number)
    seen = str(task.cases[case].run(lab.own()))
    assert [word for word in words if word not in seen] == []


def test_a_constant_hash_costs_false_matches_and_changes_nothing_else():
    lab, task = find_task("6.8")
    sound, _, constant, *_ = (case.run(lab.own()) for case in task.cases)
    assert sound[:-1] == constant[:-1]
    assert (sound[-1].text, constant[-1].text) == ("no false matches", "false matches")


def hand(number, name):
    """The answer of the engine's own part to the case `name`, as plain lists."""
    _, task = find_task(number)
    answer = next(case for case in task.cases if case.name == name).run(task.part.own)
    return [part.tolist() if hasattr(part, "tolist") else part for part in answer]


# 9.2: weights 1/8 1/2 1/8 1/4 have the running sums .125 .625 .75 1; max(p - q, 0) is 0 1/4 0 1/4.
# 9.3: u * q < p is computed for each draft in halves and quarters; then the last uniform selects an id.
@pytest.mark.parametrize(
    ("number", "case", "answer"),
    [
        ("9.1", "a chain with two accepted tokens", [[5, 6, 9, -1], [0, 1, 2, -1]]),
        ("9.1", "the tree of the picture", [[3, 4, 9, -1, -1], [0, 3, 4, -1, -1]]),
        ("9.2", "no q: four tokens", [0, 1, 1, 1, 1, 1, 2, 3, 3]),
        ("9.2", "p - q is positive at two of four", [1, 1, 1, 1, 3, 3, 3, 3, 3]),
        ("9.2", "a uniform that is a border", [2, 3]),
        ("9.3", "both are accepted", [[[1, 2, 2]], [2]]),
        ("9.3", "the first is rejected", [[[3, -1, -1]], [0]]),
        ("9.3", "the second is rejected", [[[1, 3, -1]], [1]]),
        (
            "9.3",
            "half as likely as drafted: uniforms below, at and above 1/2",
            [[[0, 1], [3, -1], [3, -1]], [1, 0, 0]],
        ),
        ("9.3", "probability 0 in both", [[[1, -1]], [0]]),
        ("9.3", "drafts of two, one and no tokens", [[[1, 2, 0], [1, 3, -1], [3, -1, -1]], [2, 1, 0]]),
    ],
)
def test_small_cases_come_out_as_by_hand(number, case, answer):
    assert hand(number, case) == answer


def test_many_draws_fit_the_target_and_accepting_everything_does_not():
    _, task = find_task("9.3")
    everything = next(m.wrong for m in task.mistakes if "every draft is accepted" in m.diagnosis)
    for case in DISTRIBUTION_CASES:
        assert [str(fit) for fit in case.run(task.part.own)] == [
            f"token {i}: as the target" for i in (1, 2, 3)
        ]
        first, second, third = (str(fit) for fit in case.run(everything))
        assert "came" in first and "came" in second  # the draft's distribution
        assert third == "token 3: as the target"  # the bonus is the target's own


def test_a_skewed_distribution_is_reported():
    p = torch.tensor([0.25] * 4 + [0.0] * 4)
    even = torch.arange(400) % 4
    assert str(fit("x", even, p)) == "x: as the target"
    assert "id 0 came 200 times, expected about 100" in str(fit("x", even.where(even > 1, 0), p))
    assert "came" in str(fit("x", even.where(even > 0, 7), p))  # probability 0
    assert str(fit("x", torch.full((9,), -1), p)) == "x: none came"


@pytest.mark.parametrize("case", range(3))
def test_drafts_are_accepted_and_rejected_in_the_engine(case):
    lab, task = find_task("9.7")
    answers, steps, used = task.cases[case].run(lab.own())
    outcomes = [outcome for step in steps for outcome in step]
    assert any(accepted > 0 for _, _, accepted in outcomes) and used == 0
    assert any(accepted < depth for _, depth, accepted in outcomes)
    plain = tiny_llm().generate(list(engine_cases.PROMPTS), list(engine_cases.PARAMS))
    wanted = [[c.token_ids for c in output.outputs] for output in plain]
    # Rejection sampling keeps only the distribution. Coupling, and greedy requests in both, keep the tokens.
    assert answers[:2] == wanted[:2] and (case == 2 or answers == wanted)


class Unwritten:
    """A part that is not written: it raises when it is called."""

    def __init__(self, *args):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("part", "case"), [("verify_coupled", 0), ("NgramIndex", 0), ("BlockTable", 1), ("verify_draft", 2)]
)
def test_the_engine_calls_the_parts_of_the_file(part, case):
    lab, task = find_task("9.7")
    parts = lab.own()
    setattr(parts, part, Unwritten)
    with pytest.raises(NotImplementedError):
        task.cases[case].run(parts)
