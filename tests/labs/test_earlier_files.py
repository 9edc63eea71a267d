"""Files that were written for an earlier version of a lab: they get one message, or still their points.

`old/` has finished files of the version in which loops received requests.
"""

from pathlib import Path

import pytest
from lab_list import LABS, each_lab

from minillm.labs.grader.earlier import earlier_version
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import skeleton, solution

OLD = Path(__file__).parent / "old"


def old(number):
    return (OLD / find_lab(number).file).read_text()


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (
            "3",
            (
                "PrefillChunk(token_ids, start, block_table)",
                "DecodeRow(token_id, position, block_table)",
                "grown",
            ),
        ),
        ("5", ("Sequence", "a Chunk has a `sequence`")),
    ],
)
def test_an_earlier_file_gets_a_message_about_the_change(check, number, names):
    results, report = check(old(number), lab=number)
    assert {result.status for result in results.values()} == {"earlier"} and report.earned == 0
    (message,) = {result.message for result in results.values()}
    folder = find_lab(number).folder
    assert "earlier version" in message and f"minillm labs start {number} --dir {folder}_new" in message
    assert all(name in message for name in names) and "\n" not in message


@pytest.mark.parametrize("number", ["4", "8", "9"])
def test_an_earlier_file_that_is_still_correct_gets_its_points(cli, tmp_path, number):
    lab = find_lab(number)
    if lab.number not in {x.number for x in LABS}:
        pytest.skip("no compiler for the simulator")
    (tmp_path / lab.file).write_text(old(number))
    code, out, _ = cli("check", number, "--dir", tmp_path)
    assert code == 0 and f"{lab.points} of {lab.points} points" in out


@pytest.mark.parametrize(
    ("number", "line", "name"),
    [
        ("3", "def decode(runner, requests): ...", "decode(requests)"),
        ("3", "def prefill(runner, chunks):\n    chunks[0].request.block_table.grow(4)", ".block_table.grow"),
        ("3", "def decode(runner, rows):\n    rows[0].num_computed_tokens += 1", ".num_computed_tokens"),
        ("3", "from minillm.model.runner import SequenceRows", "minillm.model.runner"),
        ("5", "from minillm.engine.request import RequestGroup", "minillm.engine.request.RequestGroup"),
        ("5", "def owner(chunk):\n    return chunk.request", ".request"),
        ("9", "from minillm.speculation.drafts import Draft", "minillm.speculation.drafts"),
        ("9", "import minillm.speculation.drafts", "minillm.speculation.drafts"),
        ("9", "def room(lookahead):\n    return len(lookahead.lanes)", ".lanes"),
    ],
)
def test_one_name_of_an_earlier_version_is_enough_and_its_line_is_named(number, line, name):
    lab = find_lab(number)
    text = solution(lab) + "\n\n" + line + "\n"
    assert f"(line {len(text.splitlines())}: {name})" in earlier_version(lab, text)


def test_a_file_without_the_newest_tasks_keeps_its_points_for_the_others(graded):
    """Lab 3 had no task that touches the cache; a file of that time lacks two functions."""
    lab = find_lab("3")
    former = (
        solution(lab).replace("def write_cache(", "def _old_1(").replace("def read_cache(", "def _old_2(")
    )
    rows = graded(lab, former)
    assert {number for number, row in rows.items() if row.status != "ok"} == {"3.3", "3.4", "3.9"}
    assert all(rows[number].status == "missing" for number in ("3.3", "3.4", "3.9"))
    assert "lab3.py has no write_cache" in rows["3.3"].message and "skeleton" in rows["3.9"].message


@each_lab
def test_current_files_are_not_earlier_ones(lab):
    assert earlier_version(lab, skeleton(lab)) == earlier_version(lab, solution(lab)) == ""


def test_the_message_for_an_earlier_file_is_printed_once(cli, tmp_path):
    (tmp_path / "lab3.py").write_text(old("3"))
    code, out, _ = cli("check", "3", "--dir", tmp_path)
    assert code == 1 and out.count("--dir lab3_cache_new") == 1


def test_a_file_that_is_not_python_is_not_called_earlier():
    assert earlier_version(find_lab("3"), "from minillm.engine.prefill import Chunk\ndef broken(:\n") == ""
    assert earlier_version(find_lab("3"), "nothing = 0\0") == ""
