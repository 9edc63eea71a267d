"""docs/teaching.md: its workflow, its file of hidden cases and its template are accepted."""

import re
from pathlib import Path

import pytest

from minillm.labs.classroom.feedback import NAMES, read_template
from minillm.labs.classroom.naming import lab_name, student_name
from minillm.labs.grader.hidden import read_cases
from minillm.labs.grader.registry import find_lab

PAGE = (Path(__file__).parents[2] / "docs" / "teaching.md").read_text(encoding="utf-8")


def block(kind: str, word: str) -> str:
    """The fenced block of this kind that has `word` in it."""
    (found,) = [text for text in re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S) if word in text]
    return str(found)


def test_the_workflow_is_yaml_and_runs_the_check() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(block("yaml", "jobs:"))
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] and job["timeout-minutes"] <= 60 and workflow["permissions"] == {"contents": "read"}
    assert all(len({"run", "uses"} & step.keys()) == 1 for step in job["steps"])
    assert any("minillm labs check 3" in step.get("run", "") for step in job["steps"])


def test_the_hidden_cases_are_cases_of_the_lab(tmp_path: Path) -> None:
    file = tmp_path / "hidden.py"
    file.write_text(block("text", "CASES"))
    assert "call(33, 16)" in read_cases(find_lab("3"), file)


def test_the_template_and_the_other_names_are_those_of_a_report(tmp_path: Path) -> None:
    file = tmp_path / "mine.md"
    file.write_text(block("text", "Dear $student"))
    used = set(read_template(file).get_identifiers())
    other = PAGE.partition("Other names are")[2].partition("dollar sign")[0]
    assert used | set(re.findall(r"\$([a-z]\w*)", other)) == set(NAMES)


def test_the_names_in_the_table_are_read_as_it_says() -> None:
    rows = re.findall(r"^\| `(.+?)`.*?\| (.+?) \|", PAGE.partition("| in the folder |")[2], re.M)[:5]
    assert len(rows) == 5
    for shown, student in rows:
        top = Path(shown.split("`, `")[0]).parts[0]
        named = lab_name(Path(top).stem)
        assert (named.student if named else student_name(Path(top).stem)) == student
