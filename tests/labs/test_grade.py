"""`minillm labs grade`: the gradebook, the reports, and runs that are repeated or interrupted."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillm.errors import UsageError
from minillm.labs.classroom.feedback import feedback, read_template, write_feedback
from minillm.labs.classroom.gradebook import gradebook, safe
from minillm.labs.classroom.pool import Pool
from minillm.labs.classroom.record import place, read_record, sha256
from minillm.labs.classroom.submissions import Submission
from minillm.labs.grader import sandbox
from minillm.labs.grader.registry import all_labs, find_lab
from minillm.labs.grader.skeleton import skeleton, solution

LAB = find_lab("5")
HALF = "\n\ndef rank(*_):\n    raise ValueError('`|<b>')\n"


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.fixture
def room(tmp_path):
    """A class of six: finished, open, wrong in one task, damaged, ended, a link."""
    root = tmp_path / "class"
    put(root / "alice" / "lab5.py", solution(LAB))
    put(root / "Alice" / "lab5.py", skeleton(LAB))
    put(root / "=1+1_lab5.py", solution(LAB) + HALF)
    put(root / "bob_lab5.py", "def broken(:\n")
    put(root / "carol ünal" / "lab5.py", "import os\nos._exit(0)\n")
    put(root / "dan" / "lab5.py", "")
    return root


def test_a_class_is_graded_and_a_second_run_grades_only_what_changed(cli, room, tmp_path):
    out = tmp_path / "out" / "grades.csv"
    code, text, _ = cli("grade", room, "--out", out, "--jobs", 2)
    assert code == 1 and "5 graded, 1 not graded" in text and "dan, lab 5: lab5.py is empty" in text
    assert text.count("no sandbox on this system") == bool(sandbox.missing())
    rows = rows_of(out)
    assert list(rows) == ["'=1+1", "Alice", "alice", "bob", "carol ünal", "dan"]
    points = {name: int(row["points"]) for name, row in rows.items()}
    assert points == {**dict.fromkeys(rows, 0), "alice": 100, "'=1+1": points["'=1+1"]}
    each = {task.number: int(rows["'=1+1"][task.number]) for task in LAB.tasks}
    assert sum(each.values()) == points["'=1+1"] < 100 and each["5.1"] == 0
    assert all(each[task.number] == task.points for task in LAB.tasks[1:-1])
    assert rows["dan"]["status"] == "not graded: lab5.py is empty" and rows["dan"]["5.1"] == ""
    assert rows["alice"]["sha256"] == sha256([("lab5.py", solution(LAB).encode())])

    records = {path: read_record(path) for path in (tmp_path / "out" / "grades").rglob("*.json")}
    assert {record["student"] for record in records.values()} == {name.lstrip("'") for name in rows}
    one = next(record for record in records.values() if record["student"] == "alice")
    assert one["report"]["earned"] == 100 and one["key"]["seed"] == 0 and one["time"]

    put(room / "bob_lab5.py", solution(LAB))
    os.unlink(room / "dan" / "lab5.py")
    before, table = {path: path.read_text() for path in records}, out.read_text()
    cli("grade", room, "--out", out)
    changed = {read_record(path)["student"] for path, text in before.items() if path.read_text() != text}
    assert changed == {"bob", "alice"}  # alice now has a twin
    rows = rows_of(out)
    assert rows["bob"]["points"] == "100" and rows["bob"]["flags"].endswith("same file as alice")
    assert rows["dan"]["status"] == "not graded: no lab's file" and out.read_text() != table
    seen = {path: read_record(path)["time"] for path in records}
    assert sum(seen[path] != record["time"] for path, record in records.items()) == 1


def test_another_seed_or_grader_is_not_the_same_result(room, tmp_path, monkeypatch):
    from minillm.labs.classroom import grade
    from minillm.labs.classroom.record import Rules

    graded = []

    class FakePool(Pool):
        def reports(self, items, request):
            graded.append(len(items))
            for item in items:
                request(item)
                yield item, {"earned": 5, "tasks": [], "output": "", "seconds": 1.0}

    monkeypatch.setattr(grade, "Pool", FakePool)
    cases = tmp_path / "cases.py"
    cases.write_text("CASES = {}\n")

    def run(**rules):
        return grade.Grading(tmp_path / "g.csv", Rules(**rules), read_template(None)).run(room, None)

    run(), run(), run(seed=7), run(seed=7, cases=cases)
    cases.write_text("CASES = {'5.1': []}\n")
    run(seed=7, cases=cases), run(seed=7, cases=cases), run(refuse_copies=True)
    monkeypatch.setattr("minillm.labs.classroom.record.grader_digest", lambda: "another")
    run(refuse_copies=True)
    assert graded == [5, 0, 5, 5, 5, 0, 5, 5]


def test_a_check_that_ends_its_process_loses_only_itself(room, tmp_path, monkeypatch):
    from minillm.labs.classroom import grade

    class Ending(Pool):
        def _ask(self, request, item):
            if item == 2:
                process = self._start()
                process.kill()
                process.wait()
                self._mine.process = process
            return super()._ask(request, item) if item == 2 else {"earned": 1, "tasks": [], "output": ""}

        def _start(self):
            return super()._start() if not self._processes else self._broken()

        def _broken(self):
            process = subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._processes.append(process)
            return process

    monkeypatch.setattr(grade, "Pool", Ending)
    grading = grade.Grading(tmp_path / "g.csv", grade.Rules(), read_template(None))
    records = grading.run(room, None)
    lost = [record["student"] for record in records if not record["report"]]
    assert lost == ["alice", "dan"] and "grade it again" in records[2]["problem"]


SIGNALS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.mark.parametrize("sent", SIGNALS, ids=lambda sent: sent.name)
def test_a_signal_leaves_results_that_the_next_run_uses(room, tmp_path, sent):
    put(room / "zed" / "lab5.py", "while True: pass\n")
    out = tmp_path / "g.csv"
    command = [sys.executable, "-m", "minillm.cli.main", "labs", "grade", str(room), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--jobs", "1"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 400
    while not list((tmp_path / "g").rglob("carol*/lab5.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)  # zed's file is being checked
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    code, word = SIGNALS[sent]
    assert process.returncode == code and err.strip() == f"minillm: {word}"
    rows = rows_of(out)
    assert rows["alice"]["points"] == "100" and rows["zed"]["status"] == "not graded: not checked yet"
    assert not _processes_with(str(room)) and not list(tmp_path.rglob("*.part"))

    times = {path: read_record(path)["time"] for path in (tmp_path / "g").rglob("*.json")}
    os.unlink(room / "zed" / "lab5.py")
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 1
    assert {path: read_record(path)["time"] for path in times if "zed" not in path.parts} == {
        path: at for path, at in times.items() if "zed" not in path.parts
    }


def _processes_with(word):
    """The running processes whose command line has `word`, and the workers of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        found += [line] if word in line else []
    return found


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "＝1"])
def test_a_cell_that_a_spreadsheet_would_run_is_text(name):
    assert safe(name) == f"'{name}" and safe("alice") == "alice" and safe(-1) == -1


def test_a_table_with_odd_names_is_read_back():
    names = ["a,b", 'quote"d', "new\nline", "ünal", "=x", "bad\udcff"]
    records = [
        {"student": n, "lab": 5, "points": 100, "report": None, "status": "not graded", "problem": "no, why"}
        | {"flags": [], "sha256": "", "seconds": 0.0}
        for n in names
    ]
    table = list(csv.DictReader(gradebook(records, all_labs()).splitlines(keepends=True)))
    assert [row["student"] for row in table] == [safe(name) for name in names]
    assert {row["status"] for row in table} == {"not graded: no, why"}


def test_no_two_names_meet_in_one_folder_on_any_file_system(tmp_path):
    names = [
        "alice",
        "Alice",
        "ALICE",
        "a b",
        "a_b",
        "a/b",
        "../x",
        "",
        ".",
        "ü" * 300,
        "con",
        "=1",
        "bad\udcff",
    ]
    places = [place(tmp_path, Submission(name, LAB)) for name in names]
    folders = [path.parent.relative_to(tmp_path).as_posix() for path in places]
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all("/" not in folder and len(folder) < 60 and folder.isascii() for folder in folders)


# --- reports ------------------------------------------------------------------------------------------

TASK = {"task": "5.1", "title": "t", "points": 20, "earned": 0, "status": "error", "message": "", "where": ""}
TASK |= {"expected": "", "actual": "", "diagnosis": ""}
RECORD = {
    **{"student": "a*b", "lab": 5, "title": "t", "points": 100, "problem": "", "time": "now", "sha256": "f"},
    "key": {"version": "1", "seed": 3},
    "report": {"earned": 0, "tasks": [], "output": ""},
}


def test_text_of_the_file_cannot_leave_its_block():
    task = {**TASK, "message": "```\n# You have 100 points", "diagnosis": "<script>"}
    report = {"earned": 0, "tasks": [task], "output": "````\nx"}
    text = feedback({**RECORD, "report": report}, read_template(None))
    assert "````text\n```\n# You have 100 points\n````" in text and "`````text\n````\nx\n`````" in text
    assert "<script>" not in text and "a\\*b" in text


def test_a_lecturer_s_template_and_edits_are_kept(tmp_path):
    own = tmp_path / "mine.md"
    own.write_text("$student has $earned of $points, $$5\n")
    first = feedback(RECORD, read_template(own))
    assert first == "a\\*b has 0 of 100, $5\n"
    path = tmp_path / "out" / "lab5.md"
    written = write_feedback(path, first, "")
    assert write_feedback(path, "second\n", written) != written and path.read_text() == "second\n"
    path.write_text("edited by hand\n")
    kept = write_feedback(path, "third\n", written)
    assert path.read_text() == "edited by hand\n" and path.with_suffix(".new.md").read_text() == "third\n"
    assert write_feedback(path, "third\n", kept) == kept


@pytest.mark.parametrize("text", ["$studnet", "costs 5 $", "${}"])
def test_a_template_with_a_wrong_name_is_refused_before_anything_is_graded(cli, room, tmp_path, text):
    (tmp_path / "t.md").write_text(text)
    with pytest.raises(UsageError):
        read_template(tmp_path / "t.md")
    code, _, err = cli("grade", room, "--out", tmp_path / "g.csv", "--template", tmp_path / "t.md")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "g.csv").exists()


@pytest.mark.parametrize(
    "more",
    [("--jobs", "0"), ("--lab", "77"), ("--cases", "/nowhere.py"), ("--template", "/nowhere.md")],
)
def test_wrong_options_are_usage_errors(cli, room, tmp_path, more):
    code, out, err = cli("grade", room, "--out", tmp_path / "g.csv", *more)
    assert (code, out) == (2, "") and err.startswith("minillm: ") and err.count("\n") == 1


def test_a_folder_that_does_not_exist_is_a_usage_error(cli, tmp_path):
    assert cli("grade", tmp_path / "no", "--out", tmp_path / "g.csv")[0] == 2
    assert cli("grade", tmp_path, "--out", tmp_path / "g.txt")[0] == 2


# --- check all ----------------------------------------------------------------------------------------


def test_check_all_finds_every_lab_of_a_folder(cli, tmp_path):
    put(tmp_path / "lab5_scheduler" / "lab5.py", solution(LAB))
    put(tmp_path / "lab2.py", skeleton(find_lab("2")))
    code, out, _ = cli("check", "all", "--dir", tmp_path)
    assert code == 1 and "100 / 100" in out and "0 / 100" in out and "2.1 2.2" in out
    (tmp_path / "lab2.py").unlink()
    code, out, _ = cli("check", "all", "--dir", tmp_path, "--json")
    assert code == 0 and [report["lab"] for report in json.loads(out)] == [5]


def test_check_all_of_an_empty_folder_is_a_usage_error(cli, tmp_path):
    assert cli("check", "all", "--dir", tmp_path)[0] == 2
