"""The grader's messages about mistakes: known ones, wrong files, differences and errors."""

import random

import pytest
from corpus.variants import is_cuda
from lab_list import LABS

from minillm.labs.grader.judge import judge
from minillm.labs.grader.registry import find_lab, find_task
from minillm.labs.grader.skeleton import solution

MISTAKES = [
    pytest.param(task, mistake, id=f"{task.number}-{i}")
    for lab in LABS
    for task in lab.tasks
    for i, mistake in enumerate(task.mistakes)
]


def is_left_out(mistake, config):
    """Whether this run does not judge the mistake: it runs in the simulator, and is not in the sample."""
    in_cuda = [m for lab in LABS if is_cuda(lab) for task in lab.tasks for m in task.mistakes]
    if config.getoption("corpus") or all(mistake is not m for m in in_cuda):
        return False
    chosen = random.Random(config.getoption("corpus_seed")).sample(in_cuda, 8)
    return all(mistake is not m for m in chosen)


@pytest.mark.parametrize(("task", "mistake"), MISTAKES)
def test_a_known_mistake_is_wrong_and_gets_its_own_diagnosis(task, mistake, pytestconfig):
    if is_left_out(mistake, pytestconfig):
        pytest.skip("not in the sample of the simulator's mistakes; --corpus judges all")
    own = task.part.own if task.part else find_task(task.number)[0].own()
    row = judge(task, mistake.wrong, own)
    assert (row.earned, row.diagnosis) == (0, mistake.diagnosis)


def test_a_difference_shows_a_part_of_both_answers(graded):
    lab = find_lab("3")
    rows = graded(
        lab, solution(lab) + "\n\ndef slot_mapping(table, positions, size):\n    return [*positions]\n"
    )
    row = rows["3.2"]
    assert (row.where, row.expected[:7], row.actual[:5]) == ("item 1", "[20, 21", "[0, 1")


def test_an_error_names_its_line_and_a_not_implemented_error_of_torch_is_an_error(graded):
    lab = find_lab("3")
    broken = "\n\ndef blocks_for(tokens, size):\n    raise NotImplementedError('no kernel for this dtype')\n"
    text = solution(lab) + broken
    row = graded(lab, text)["3.1"]
    assert row.status == "error" and "no kernel for this dtype" in row.message
    assert f"(line {len(text.splitlines())})" in row.message
