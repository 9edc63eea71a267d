"""The Gradescope export, run as Gradescope's harness does: the zip in source/, a submission, the results."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution

LAB = find_lab("5")
WRONG = "\n\ndef rank(*_):\n    return '<b>1</b>'\n"
# "Autograder Specifications", the part "Output format".
VISIBILITY = {"hidden", "after_due_date", "after_published", "visible"}
FORMATS = {"text", "html", "simple_format", "md", "ansi"}
TOP = {
    "score",
    "execution_time",
    "output",
    "output_format",
    "test_output_format",
    "test_name_format",
    "visibility",
}
TOP |= {"stdout_visibility", "extra_data", "tests", "leaderboard"}
TEST = {"score", "max_score", "status", "name", "name_format", "number", "output", "output_format", "tags"}
TEST |= {"visibility", "extra_data"}
METADATA = {
    "id": 1,
    "created_at": "2026-01-01T10:00:00.000000-08:00",
    "assignment": {"title": "Lab 5"},
    "users": [],
}


def faults(results):
    """What is not in Gradescope's format."""
    yield from (f"unknown {name}" for name in results.keys() - TOP)
    for name in ("visibility", "stdout_visibility"):
        if results.get(name, "visible") not in VISIBILITY:
            yield name
    if not isinstance(results.get("score"), int | float) or not isinstance(results.get("output", ""), str):
        yield "score or output"
    if results.get("output_format", "text") not in FORMATS or results["execution_time"] < 0:
        yield "output_format or time"
    for test in results["tests"]:
        yield from (f"unknown {name} in a test" for name in test.keys() - TEST)
        if not all(isinstance(test[name], int | float) for name in ("score", "max_score")):
            yield "points of a test"
        if not all(isinstance(test[name], str) for name in ("name", "number", "output")):
            yield "text of a test"
        if test["status"] not in ("passed", "failed") or test["visibility"] not in VISIBILITY:
            yield "status or visibility of a test"
        if test["output_format"] not in FORMATS:
            yield "output_format of a test"


@pytest.fixture
def autograder(cli, tmp_path):
    """Export, unpack as Gradescope does, run a submission; return the results."""
    code, out, _ = cli("export", LAB.number, tmp_path / "out", "--gradescope", "--seed", 5)
    assert code == 0 and "autograder.zip" in out
    root = tmp_path / "autograder"
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", tmp_path / "out" / "autograder.zip", root / "source"],
        check=True,
    )
    shutil.copy(root / "source" / "run_autograder", root / "run_autograder")
    (root / "run_autograder").chmod(0o755)

    def run(files):
        shutil.rmtree(root / "submission", ignore_errors=True)
        shutil.rmtree(root / "results", ignore_errors=True)
        (root / "submission").mkdir()
        (root / "results").mkdir()
        (root / "submission_metadata.json").write_text(json.dumps(METADATA))
        for name, text in files.items():
            (root / "submission" / name).write_text(text)
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env["AUTOGRADER_PYTHON"] = sys.executable
        with (root / "results" / "stdout").open("w") as stdout:
            done = subprocess.run(
                ["./run_autograder"], cwd=root, env=env, stdout=stdout, stderr=stdout, timeout=300
            )
        said = (root / "results" / "stdout").read_text()
        assert done.returncode == 0, said
        results = json.loads((root / "results" / "results.json").read_text())
        assert list(faults(results)) == []
        return results, said

    return run


def test_submissions_get_their_points_in_gradescope_s_format(autograder):
    results, said = autograder({"lab5.py": solution(LAB)})
    assert results["score"] == sum(test["score"] for test in results["tests"]) == 100 and said == ""
    assert {test["number"]: test["max_score"] for test in results["tests"]} == {
        t.number: t.points for t in LAB.tasks
    }
    assert results["extra_data"]["seed"] == 5 and len(results["extra_data"]["sha256"]) == 64

    results, _ = autograder({"my lab.py": solution(LAB) + WRONG})
    failed = [test for test in results["tests"] if test["status"] == "failed"]
    assert 0 < results["score"] < 100 and {"5.1"} <= {test["number"] for test in failed} <= {"5.1", "5.7"}
    assert failed[0]["number"] == "5.1" and {test["output_format"] for test in failed} == {"text"}

    results, _ = autograder({"notes.txt": "hello"})
    assert (
        results["score"] == 0
        and "no lab5.py" in results["output"]
        and len(results["tests"]) == len(LAB.tasks)
    )
    results, _ = autograder({"lab5.py": "import os\nos._exit(0)\n"})
    assert results["score"] == 0 and "exit code 0" in results["tests"][0]["output"]


def test_results_are_written_when_the_autograder_itself_fails(autograder, tmp_path):
    (tmp_path / "autograder" / "source" / "rules.json").write_text("{}")
    results, said = autograder({"lab5.py": solution(LAB)})
    assert results["score"] == 0 and "tell your instructor" in results["output"] and "KeyError" in said


def test_control_another_format_is_noticed():
    test = {
        "score": 1,
        "max_score": "1",
        "status": "ok",
        "name": "a",
        "number": "1",
        "output": "",
        "visibility": "all",
    }
    bad = {
        "score": "1",
        "execution_time": 1,
        "visibility": "no",
        "points": 3,
        "tests": [test | {"output_format": "pdf"}],
    }
    found = list(faults(bad))
    assert len(found) == 6 and "unknown points" in found


def test_the_zip_has_the_scripts_at_its_root_and_can_be_run_anywhere(cli, tmp_path):
    (tmp_path / "hidden.py").write_text("CASES = {}\n")
    assert cli("export", 7, tmp_path, "--gradescope", "--cases", tmp_path / "hidden.py")[0] == 0
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        names = archive.namelist()
        modes = {name: archive.getinfo(name).external_attr >> 16 for name in ("setup.sh", "run_autograder")}
        setup, script = (archive.read(name).decode() for name in ("setup.sh", "run_autograder"))
        assert archive.read("cases.py") == b"CASES = {}\n"
    assert all(mode & 0o111 for mode in modes.values())
    assert {"minillm/labs/lab7_attention/lab7.cu", "minillm/csrc/simt/simt.h", "requirements.txt"} <= set(
        names
    )
    assert not any("zoo/" in name or "__pycache__" in name or name.startswith("/") for name in names)
    for text in (setup, script):
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        code = [line for line in text.splitlines() if not line.startswith("#")]
        assert text.startswith("#!") and not any("/autograder" in line for line in code)
