"""Fixtures of the labs' tests: check a file in child processes, judge one in this process, run a command."""

import sys

import pytest

from minillm.cli.main import main
from minillm.labs.grader import supervise
from minillm.labs.grader.judge_here import judge_file
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.student_file import load


@pytest.fixture
def check(tmp_path):
    """Check a text in child processes with small limits; return the rows by task, and the report."""

    def run(text, lab=3, seconds=5.0, memory=1 << 30):
        file = tmp_path / f"lab{lab}.py"
        file.write_text(text)
        report = supervise.check(find_lab(str(lab)), file, supervise.Limits(seconds, memory))
        assert [row.task for row in report.results] == [task.number for task in find_lab(str(lab)).tasks]
        return {row.task: row for row in report.results}, report

    return run


@pytest.fixture
def graded(tmp_path, monkeypatch):
    """Judge a text in this process; return the rows by task."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "student_lab", raising=False)

    def run(lab, text):
        file = tmp_path / lab.file
        file.write_text(text)
        module = load(file)
        monkeypatch.delitem(sys.modules, "student_lab")
        return {task.number: judge_file(lab, task, module, file) for task in lab.tasks}

    return run


@pytest.fixture
def cli(capsys):
    def run(*args):
        code = main(["labs", *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
