"""The grader's messages about mistakes: known ones, wrong files, differences and errors."""

import pytest
from lab_list import LABS

from minillm.labs.grader.judge import judge
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution

MISTAKES = [
    pytest.param(task, mistake, id=f"{task.number}-{i}")
    for lab in LABS
    for task in lab.tasks
    for i, mistake in enumerate(task.mistakes)
]


@pytest.mark.parametrize(("task", "mistake"), MISTAKES)
def test_a_known_mistake_is_wrong_and_gets_its_own_diagnosis(task, mistake):
    row = judge(task, mistake.wrong, task.part.own)
    assert (row.earned, row.diagnosis) == (0, mistake.diagnosis)


def test_a_difference_shows_a_part_of_both_answers(graded):
    lab = find_lab("3")
    rows = graded(
        lab, solution(lab) + "\n\ndef slot_mapping(table, positions, size):\n    return [*positions]\n"
    )
    row = rows["3.2"]
    assert (row.where, row.expected[:7], row.actual[:5]) == ("[0]", "[20, 21", "[0, 1")


def test_an_error_names_its_line_and_a_not_implemented_error_of_torch_is_an_error(graded):
    lab = find_lab("3")
    broken = "\n\ndef blocks_for(tokens, size):\n    raise NotImplementedError('no kernel for this dtype')\n"
    text = solution(lab) + broken
    row = graded(lab, text)["3.1"]
    assert row.status == "error" and "no kernel for this dtype" in row.message
    assert f"(line {len(text.splitlines())})" in row.message
