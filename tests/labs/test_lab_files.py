"""The files of the labs: committed files, skeletons, finished files, hints."""

import importlib.util
import sys
from pathlib import Path

import pytest
from lab_list import each_lab

from minillm.labs.grader.skeleton import skeleton, solution


@pytest.fixture(scope="module")
def build():
    """scripts/dev/build_labs.py as a module."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "dev" / "build_labs.py"
    spec = importlib.util.spec_from_file_location("build_labs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_files_are_the_generated_ones(build):
    for path, text in build.built_files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run scripts/dev/build_labs.py"


def test_a_changed_docstring_is_noticed(build, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "LABS", tmp_path / "notebooks" / "labs")
    monkeypatch.setattr(sys, "argv", ["build_labs.py"])
    assert build.main() == 0
    monkeypatch.setattr(sys, "argv", ["build_labs.py", "--check"])
    assert build.main() == 0
    capsys.readouterr()
    path = build.LABS / "lab3_cache" / "lab3.py"
    path.write_text(path.read_text().replace('"""', '"""Changed: ', 1))
    assert build.main() == 1
    assert capsys.readouterr().out == "differs: notebooks/labs/lab3_cache/lab3.py\n"


@each_lab
def test_every_task_of_a_skeleton_is_open(graded, lab):
    rows = graded(lab, skeleton(lab))
    assert {row.status for row in rows.values()} == {"todo"}
    assert sum(row.earned for row in rows.values()) == 0
    for task in lab.tasks:
        assert f"minillm labs hint {lab.number}." in rows[task.number].message


@each_lab
def test_the_engine_s_own_parts_get_full_points(cli, tmp_path, lab):
    (tmp_path / lab.file).write_text(solution(lab))
    code, out, _ = cli("check", lab.number, "--dir", tmp_path)
    assert code == 0 and f"{lab.points} of {lab.points} points" in out


@each_lab
def test_every_task_has_three_hints_and_the_engine_task_one(lab):
    for task in lab.tasks:
        assert len(lab.hints(task.number)) == (3 if task.part else 1), task.number
