"""The commands of `minillm labs`."""

import json

import pytest
from lab_list import LABS

from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import skeleton


def test_list_names_every_task(cli):
    code, out, _ = cli("list")
    assert code == 0
    assert all(task.number in out for lab in LABS for task in lab.tasks)


def test_start_overwrites_only_when_forced(cli, tmp_path):
    code, out, _ = cli("start", 3, "--dir", tmp_path / "mine")
    file = tmp_path / "mine" / "lab3.py"
    assert code == 0 and str(file) in out
    assert file.read_text() == skeleton(find_lab("3"))
    assert (tmp_path / "mine" / "README.md").read_text() == find_lab("3").handout()
    file.write_text("# work of a week\n")
    code, _, err = cli("start", 3, "--dir", tmp_path / "mine")
    assert code == 2 and "--force" in err
    assert file.read_text() == "# work of a week\n"
    assert cli("start", 3, "--dir", tmp_path / "mine", "--force")[0] == 0
    assert file.read_text() == skeleton(find_lab("3"))


def test_check_as_json_is_one_object(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("start", 3)[0] == 0
    code, out, err = cli("check", 3, "--json")
    report = json.loads(out)
    assert code == 1 and err == ""
    assert (report["points"], report["earned"], report["ok"]) == (100, 0, False)
    assert [task["status"] for task in report["tasks"]] == ["todo"] * 9


def test_check_prints_a_failure_once_and_returns_1(cli, tmp_path):
    (tmp_path / "lab2.py").write_text("def broken(:\n")
    code, out, _ = cli("check", 2, "--dir", tmp_path)
    assert code == 1 and out.count("SyntaxError") == 1 and "0 of 100 points" in out


def test_hints_come_in_levels(cli):
    texts = [cli("hint", "3.2", "--level", level)[1] for level in (1, 2, 3)]
    assert len(set(texts)) == 3
    assert cli("hint", "3.2")[1] == texts[0]
    assert "--level 2" in texts[0] and "--level" not in texts[2]


@pytest.mark.parametrize(
    "args",
    [
        ("start", "99"),
        ("check", "zero"),
        ("check", "1", "--dir", "/nowhere"),
        ("hint", "3.10"),
        ("hint", "99.1"),
        ("hint", "3.2", "--level", "4"),
        ("hint", "3.2", "--level", "0"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(cli, args):
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert err.startswith("minillm: ") and err.count("\n") == 1
