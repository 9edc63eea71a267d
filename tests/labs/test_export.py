"""`minillm labs export --no-solutions`: no line of the solution, and the same verdicts as with the engine."""

import os
import subprocess
import sys

import pytest
from corpus.variants import files, odd, wrong
from lab_list import each_lab, few_labs

from minillm.labs.classroom.package import DEPENDENCIES, export_package, readme
from minillm.labs.classroom.solution_lines import quoted, solution_lines
from minillm.labs.classroom.strip import stripped
from minillm.labs.classroom.tidy import tidied
from minillm.labs.grader.lab import Part
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import skeleton, solution

# Right, but frees blocks in another order. In a package the other tasks run with it and see other block ids.
OTHER_ORDER = {"a list of the oldest"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The package of each lab, made once."""
    made = {}

    def of(lab):
        if lab.number not in made:
            made[lab.number] = tmp_path_factory.mktemp("export") / f"lab{lab.number}"
            export_package(lab, made[lab.number])
        return made[lab.number]

    return of


def run(package, *words):
    """The command line of the package: its own engine, not this one."""
    env = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-P", "-m", "minillm.cli.main", "labs", *map(str, words)]
    return subprocess.run(command, cwd=package, env=env, capture_output=True, text=True, timeout=600)


def points(package, lab, text, tmp_path):
    """(points, {task: status}) of a file in the package."""
    import json

    (tmp_path / lab.file).write_text(text)
    done = run(package, "check", lab.number, "--dir", tmp_path, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1), done.stderr
    return report["earned"], {task["task"]: task["status"] for task in report["tasks"]}


@each_lab
def test_no_file_of_the_package_holds_a_line_of_the_solution(packages, lab):
    lines = solution_lines(lab)
    assert len(lines) > 8
    package = packages(lab)
    texts = {path: path.read_text(errors="replace") for path in package.rglob("*") if path.is_file()}
    assert len(texts) > 100
    assert {
        str(path.relative_to(package)): found
        for path, text in texts.items()
        if (found := quoted(text, lines))
    } == {}
    names = {path.name for path in texts}
    assert not names & {"attention_v1.cu", "attention.h", "decode_d1.cu", "sampling.cpp", "model.safetensors"}
    cases = [text for path, text in texts.items() if path.parent.name == lab.folder and path.suffix == ".py"]
    assert not any("Mistake(" in text or "wrong(" in text for text in cases)
    assert lab.number == 9 or not list(package.rglob("lab9*"))


def test_control_a_line_of_the_solution_is_found_in_any_layout():
    lab = find_lab("3")
    lines = solution_lines(lab)
    body = "return [block_table[pos // block_size] * block_size + pos % block_size for pos in positions]"
    assert quoted(f"x = 1\n        {body}  # a comment\n", lines)
    assert quoted(body.replace(" + ", "\n        + "), lines)
    assert not quoted("return [block_table[pos] for pos in positions]", lines)
    assert quoted(solution(lab), lines) == sorted(lines) and not quoted(skeleton(lab), lines)


@each_lab
def test_the_whole_engine_would_be_noticed(lab):
    sources = [lab.package / lab.file] if lab.file.endswith(".cu") else _modules(lab)
    assert any(quoted(path.read_text(), solution_lines(lab)) for path in sources)


def _modules(lab):
    import importlib
    from pathlib import Path

    return {Path(importlib.import_module(part.module).__file__) for part in lab.parts}


@few_labs
def test_in_the_package_a_finished_file_is_right_and_a_skeleton_is_open(packages, lab, tmp_path):
    package = packages(lab)
    earned, statuses = points(package, lab, solution(lab), tmp_path)
    assert earned == lab.points, statuses
    earned, statuses = points(package, lab, skeleton(lab), tmp_path)
    assert earned == 0 and set(statuses.values()) == {"todo"}
    assert (package / lab.file).read_text() == skeleton(lab)
    page = (package / "README.md").read_text()
    assert page == readme(lab) and "pip install -e ." in page and f"labs start {lab.number}" not in page
    assert set(lab.handout().splitlines()) - set(page.splitlines()) == {
        line for line in lab.handout().splitlines() if f"labs start {lab.number} " in line
    }


@few_labs
def test_in_the_package_wrong_files_fail_and_odd_ones_do_not(packages, lab, tmp_path):
    """The whole corpus is graded with the engine; here one file of each kind."""
    text, group = files(lab, wrong(lab))[0]
    earned, statuses = points(packages(lab), lab, text, tmp_path)
    for variant in group:
        assert all(statuses[number] != "ok" for number in variant.says), (variant.name, statuses)
    allowed = [variant for variant in odd(lab) if variant.name not in OTHER_ORDER]
    if chosen := files(lab, allowed)[:1]:
        earned, statuses = points(packages(lab), lab, chosen[0][0], tmp_path)
        assert earned == lab.points, ([variant.name for variant in chosen[0][1]], statuses)


def test_a_package_starts_the_same_lab_and_refuses_hidden_cases(packages, tmp_path):
    lab, other = find_lab("3"), find_lab("4")
    package = packages(lab)
    assert run(package, "start", 3, "--dir", tmp_path / "mine").returncode == 0
    assert (tmp_path / "mine" / "lab3.py").read_text() == skeleton(lab)
    done = run(package, "check", 3, "--dir", tmp_path / "mine", "--seed", 1)
    assert done.returncode == 2 and "recorded answers only" in done.stderr
    assert run(package, "check", other.number).returncode == 2
    assert run(package, "hint", "3.2").returncode == 0


def test_a_folder_that_is_not_empty_is_refused(cli, tmp_path):
    (tmp_path / "x").write_text("")
    code, _, err = cli("export", 3, tmp_path, "--no-solutions")
    assert code == 2 and "not empty" in err and [path.name for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(SystemExit):
        cli("export", 3, tmp_path / "new")


def test_the_dependencies_are_the_project_s():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    without_converter = [name for name in project["dependencies"] if not name.startswith("gguf")]
    assert without_converter == DEPENDENCIES


# --- sources ------------------------------------------------------------------------------------------

SOURCE = '''"""First line.

The answer is a + b.
"""

from __future__ import annotations


def add(a, b=2, *rest, key=None, **more):
    """Add."""
    # the answer
    return a + b


def short(a): return add(a)


class Box:
    def put(self, x):
        return self._help(x)

    @staticmethod
    def _help(x):
        return x * 2

    def other(self):
        return 1
'''


def test_bodies_go_and_everything_else_stays():
    text = stripped(SOURCE, [Part("m", "add"), Part("m", "short"), Part("m", "Box", ("put",), ("_help",))])
    compile(text, "m", "exec")
    assert "answer" not in text and "a + b" not in text and "x * 2" not in text and "return 1" in text
    assert 'return written("add")(a, b, *rest, key=key, **more)' in text
    assert 'return written("Box", "put")(self, x)' in text and "def __getattr__" in text
    assert '"""Add."""' in text and "@staticmethod" in text


LAB_MODULES = {
    "__init__": '"""A lab."""\n',
    "lab": "from p.lab1.cases import CASES, WRONG, helper\nfrom p.lab1.more import MORE\n"
    "TASKS = (Task('1.1', 'ü', 1, None, CASES, WRONG), Task('1.2', 'b', 1, None, CASES, mistakes=MORE))\n"
    "LAB = Lab(1, TASKS, helper)\n",
    "cases": "import os\nimport re\n\nUSED = re\n\n\n# about cheat\ndef cheat():\n    return os\n\n\n"
    "def helper():\n    return USED\n\n\nCASES = (helper,)\nWRONG = (cheat,)\n",
    "more": "MORE = (1,)\n",
}


def test_mistakes_go_with_all_that_only_they_need():
    made = tidied("p.lab1", LAB_MODULES)
    assert set(made) == {"__init__", "lab", "cases"}
    assert "WRONG" not in made["lab"] and "MORE" not in made["lab"] and "'ü', 1, None, CASES)" in made["lab"]
    assert "cheat" not in made["cases"] and "import os" not in made["cases"] and "import re" in made["cases"]
    assert "def helper" in made["cases"]
