"""The grader graded: wrong solutions fail with their own diagnosis, odd but right ones get full marks.

A normal run grades all files of every lab that has changed since its record was written, and a few files of
the others. The seed of this choice is the date; the header of the run prints it. `--corpus` grades all files
and writes the records.
"""

import pytest
from corpus.sample import all_files, digest, inputs, is_changed, some_files, write_record
from corpus.variants import Rewrite, Slip, edited, files, odd, variants, wrong
from lab_list import LABS, each_lab

from minillm.labs.grader.cuda_text import sections
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution

# Labs whose corpus is not complete yet.
TO_COMPLETE = {}


def faults(lab, group, rows):
    """What the grader says wrongly about a file with the variants of `group`."""
    says = {number: (variant.name, text) for variant in group for number, text in variant.says.items()}
    for task in lab.tasks:
        row = rows[task.number]
        if task.number in says:
            name, text = says[task.number]
            if row.earned or text not in row.diagnosis:
                yield f"{name}: {task.number} should say {text!r}: {row}"
        elif task.part or not says:
            if row.status != "ok":
                yield f"{[variant.name for variant in group]}: {task.number} should be ok: {row}"
        elif row.diagnosis:  # the task of the whole file may fail, but has no diagnosis
            yield f"{[variant.name for variant in group]}: {task.number} should have no diagnosis: {row}"


@each_lab
def test_the_grader_is_right_about_the_corpus(graded, lab, pytestconfig):
    is_whole = pytestconfig.getoption("corpus") or is_changed(lab)
    chosen = all_files(lab) if is_whole else some_files(lab, pytestconfig.getoption("corpus_seed"))
    found = [fault for text, group in chosen for fault in faults(lab, group, graded(lab, text))]
    assert found == [], "\n".join(found)
    if pytestconfig.getoption("corpus"):
        write_record(lab)


def missing(lab):
    """What the corpus of a lab lacks."""
    for task in lab.tasks:
        mine = [variant for variant in wrong(lab) if variant.says.get(task.number)]
        num_wrong = len(task.mistakes) + len(mine)
        num_odd = sum(task.number in variant.tasks(lab) for variant in odd(lab))
        if task.part and num_wrong < 6:
            yield f"{task.number} has {num_wrong} wrong solutions, needs 6"
        if task.part and num_odd < 3:
            yield f"{task.number} has {num_odd} odd but right solutions, needs 3"
    for variant in wrong(lab):
        yield from (
            f"{variant.name} expects no diagnosis in {n}" for n, text in variant.says.items() if not text
        )


@each_lab
def test_every_task_has_six_wrong_and_three_odd_solutions(lab):
    found = list(missing(lab))
    if lab.number in TO_COMPLETE:
        assert found, f"lab {lab.number} is complete: take it out of TO_COMPLETE"
    else:
        assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    "variant",
    [
        Slip(
            "another diagnosis",
            "return -(-num_tokens //",
            "return (num_tokens //",
            {"3.1": "words that it does not say"},
        ),
        Slip("another task", "return -(-num_tokens //", "return (num_tokens //", {"3.2": "rounded down"}),
        Rewrite("not right", "def blocks_for(num_tokens, block_size):\n    return 1\n"),
        Rewrite(
            "not wrong", "def blocks_for(n, size):\n    return (n + size - 1) // size\n", {"3.1": "down"}
        ),
    ],
    ids=lambda variant: variant.name,
)
def test_control_a_wrong_verdict_is_noticed(graded, variant):
    lab = find_lab("3")
    assert list(faults(lab, [variant], graded(lab, edited(lab, [variant]))))


def test_variants_of_one_task_or_with_one_name_are_in_two_files():
    lab = find_lab("3")
    grow = Rewrite("a", "def mine(self, n):\n    pass\n\nBlockTable.grow = mine\n", {"3.5": "x"})
    fork = Rewrite("b", "def mine(self, n):\n    pass\n\nBlockTable.fork = mine\n", {"3.6": "x"})
    table = Rewrite("c", "class BlockTable:\n    pass\n", {"3.5": "x"})
    slip = Slip("d", "return -(-num_tokens //", "return (num_tokens //", {"3.1": "x"})
    assert [v.tasks(lab) for v in (grow, fork, table, slip)] == [{"3.5"}, {"3.6"}, {"3.5", "3.6"}, {"3.1"}]
    grouped = [[v.name for v in group] for _, group in files(lab, [grow, fork, table, slip])]
    assert grouped == [["a", "d"], ["b"], ["c"]]


def test_a_section_of_a_cuda_file_is_rewritten():
    lab = find_lab("8")
    number = lab.tasks[0].number
    text = edited(lab, [Rewrite("r", {number: "  return 7;\n"})])
    old = sections(solution(lab))[number][1]
    assert sections(text)[number][1] == "  return 7;\n" and old not in text and text != solution(lab)


def test_a_change_of_the_lab_or_of_its_corpus_is_noticed(tmp_path, monkeypatch):
    lab = find_lab("3")
    assert is_changed(lab, tmp_path)
    write_record(lab, tmp_path)
    assert not is_changed(lab, tmp_path)
    for name in ("block_table.py", "judge.py", "prefill_cases.py", "lab3.py", "variants.py"):
        assert name in {path.name for path in inputs(lab)}
    (tmp_path / "lab3.txt").write_text("0" * 64 + "\n")
    assert is_changed(lab, tmp_path) and digest(lab) != digest(find_lab("4"))


@each_lab
def test_another_seed_chooses_other_files(lab):
    first, again, other = ([text for text, _ in some_files(lab, seed)] for seed in ("1", "1", "2"))
    assert first == again and (first != other or len(variants(lab)) < 10)


def test_there_are_labs():
    assert LABS
