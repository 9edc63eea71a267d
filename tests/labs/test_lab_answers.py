"""Answers between the two processes, hidden cases, the engine's own code, places of errors."""

import json

import pytest
import torch

from minillm.errors import UsageError
from minillm.labs.grader import sandbox, supervise
from minillm.labs.grader.answers import answer
from minillm.labs.grader.borrowed import copied
from minillm.labs.grader.codec import Foreign, Raised, decode, encode
from minillm.labs.grader.compare import difference
from minillm.labs.grader.hidden import call, read_cases, with_hidden
from minillm.labs.grader.judge import judge
from minillm.labs.grader.lab import Case, Mistake, Task, Words
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import skeleton, solution
from minillm.memory.block_pool import BlockPool


def sent(value):
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 1 << 80, -0.5, float("inf"), "a\ud800", b"\x00\xff", Words("1 pass"), [1, [2.0, "x"]]],
)
def test_plain_values_arrive_as_they_are(value):
    assert sent(value) == value and type(sent(value)) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_arrive_with_dtype_and_shape(dtype, shape):
    tensor = torch.ones(shape, dtype=dtype)
    assert difference(tensor, sent(tensor)) is None
    assert difference(tensor, sent(torch.ones(4))) is not None


class Sly(list):
    def __iter__(self):
        return iter([9, 9])

    def __eq__(self, other):
        return True


class Agrees:
    def __eq__(self, other):
        return True


def test_objects_of_the_file_become_plain_or_equal_nothing():
    assert type(sent(Sly([1, 2]))) is list and sent(Sly([1, 2])) == [1, 2]
    assert isinstance(sent(Agrees()), Foreign)
    assert difference(None, sent(Agrees())) and difference([1], sent(Agrees()))
    assert isinstance(sent(torch.ones(2).to_sparse()), Foreign)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"tensor": ["float32", [2], "AAAA"]},
        {"tensor": ["object", [0], ""]},
        {"words": 3},
        {"a": 1, "b": 2},
    ],
)
def test_what_encode_does_not_write_is_refused(message):
    with pytest.raises(ValueError, match=r"."):
        decode(message)


def fails_in_engine(_):
    BlockPool(1, 4).ref_count(5)


def fails_itself(_):
    raise IndexError("block 5")


def fails_with_a_typed_error(_):
    BlockPool(1, 4).allocate(5)


def test_a_diagnosis_needs_the_type_and_the_place_of_an_error():
    case = Case("a case", lambda part: part(0))
    task = Task("3.1", "title", 5, None, (case,), (Mistake("too many blocks", fails_in_engine),))
    assert judge(task, fails_in_engine, lambda _: 1).diagnosis == "too many blocks"
    assert judge(task, fails_itself, lambda _: 1).diagnosis == ""
    assert decode(answer(case, fails_in_engine)).place == "memory/block_pool.py:_checked"
    assert decode(answer(case, fails_itself)).place == ""
    assert decode(answer(case, fails_with_a_typed_error)).place == ""


def test_the_right_error_from_another_place_is_right():
    assert difference(Raised("UsageError", "", True, "a"), Raised("UsageError", "x", True, "b")) is None


# --- hidden cases --------------------------------------------------------------------------------------


CASES = 'CASES = {"3.2": [call([5, 2, 7], [9], 4)], "3.7": []}'


def test_a_lecturer_s_case_finds_what_the_lab_s_cases_do_not(check, tmp_path):
    lab, file, cases = find_lab("3"), tmp_path / "lab3.py", tmp_path / "hidden_cases.py"
    cases.write_text('CASES = {"3.2": [call([7] * 40, [155], 4)]}')
    wrong = "\n\n_right = slot_mapping\n\ndef slot_mapping(table, positions, size):\n"
    wrong += "    return [0] if 155 in positions else _right(table, positions, size)\n"
    file.write_text(solution(lab) + wrong)
    report = supervise.check(lab, file, cases=cases)
    assert [r.task for r in report.results if r.status != "ok"] == ["3.2", "3.9"]  # 3.9 needs 3.2
    assert report.results[1].rows == (("> item 1", "31", "0"),)


def test_a_case_gives_the_part_its_own_copies():
    case = call([1, 2])
    assert case.run(lambda items: (items.append(3), items)[1]) == [1, 2, 3]
    assert case.run(lambda items: items) == [1, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("CASES = 3", "no CASES"),
        ("CASES = {'9.9': []}", "no task '9.9'"),
        ("CASES = {'3.2': [1]}", "not a list of cases"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(", "SyntaxError"),
    ],
)
def test_a_bad_file_of_cases_is_a_usage_error(tmp_path, text, says):
    (tmp_path / "cases.py").write_text(text)
    with pytest.raises(UsageError, match=says):
        read_cases(find_lab("3"), tmp_path / "cases.py")
    with pytest.raises(UsageError, match="cannot read"):
        read_cases(find_lab("3"), tmp_path / "none.py")


def test_cases_are_added_to_their_task():
    lab = find_lab("3")
    more = with_hidden(lab, 0, CASES)
    assert len(more.tasks[1].cases) == len(lab.tasks[1].cases) + 1
    assert [len(t.cases) for t in more.tasks[2:]] == [len(t.cases) for t in lab.tasks[2:]]


# --- the engine's own code -----------------------------------------------------------------------------


def test_the_finished_file_is_the_engine_s_and_the_skeleton_is_not():
    lab = find_lab("1")
    assert "1.2 keep_top" in copied(lab, solution(lab))
    assert copied(lab, skeleton(lab)) == []


def test_other_names_comments_and_annotations_do_not_hide_a_copy():
    lab = find_lab("3")
    text = solution(lab).replace("child", "fork_of_it").replace("num_tokens", "count")
    assert copied(lab, text) == copied(lab, solution(lab)) == ["3.6 BlockTable.fork"]
    made = "        child = BlockTable(self._pool)\n"
    other = solution(lab).replace(made, f"{made}        rest = abs(rest)\n")
    assert other != solution(lab) and copied(lab, other) == []


def test_copies_are_refused_if_the_lecturer_wants_it(tmp_path):
    lab, file = find_lab("3"), tmp_path / "lab3.py"
    file.write_text(solution(lab))
    report = supervise.check(lab, file, supervise.Limits(refuse_copies=True))
    assert {r.task: r.status for r in report.results if r.status != "ok"} == {
        "3.6": "engine",
        "3.9": "held",
    }
    assert report.earned == lab.points - lab.tasks[5].points - lab.tasks[-1].points


# --- the rest ------------------------------------------------------------------------------------------


def test_a_sandbox_without_network_in_which_only_scratch_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "missing", lambda: "")
    command = sandbox.sandboxed(["python", "x"], str(tmp_path), [tmp_path])
    assert command[0] == "bwrap" and command[-3:] == ["--", "python", "x"]
    assert "--unshare-all" in command and command[command.index("--ro-bind") + 1] == "/"
    assert command[command.index("--bind") + 1] == str(tmp_path)
    monkeypatch.setattr(sandbox, "missing", lambda: "none")
    assert sandbox.sandboxed(["python", "x"], str(tmp_path), []) == ["python", "x"]


def test_a_system_without_bubblewrap_says_so(monkeypatch):
    sandbox.missing.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: None)
    assert "not installed" in sandbox.missing()
    sandbox.missing.cache_clear()
