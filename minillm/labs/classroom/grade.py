"""Grade a folder of submissions: find them, check what is new, write the gradebook and the reports.

submissions --> old result with the same key? --yes--> used again
                                             --no---> pool of processes --> results/STUDENT/labN.json
all results --> grades.csv, results/STUDENT/labN.md
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

from minillm.errors import UsageError
from minillm.labs.classroom.feedback import feedback, write_feedback
from minillm.labs.classroom.gradebook import gradebook
from minillm.labs.classroom.pool import Pool, Request
from minillm.labs.classroom.record import Rules, place, read_record, sha256, write_text
from minillm.labs.classroom.submissions import Submission, find_submissions
from minillm.labs.classroom.unpack import BadZip
from minillm.labs.grader.lab import Lab
from minillm.labs.grader.registry import all_labs
from minillm.progress import Bar

Record = dict[str, Any]


@dataclass
class Grading:
    """One run over a class. `results`: the folder of the results, beside `out`."""

    out: Path
    rules: Rules
    template: Template
    jobs: int = 1

    @property
    def results(self) -> Path:
        """`grades/` for `grades.csv`."""
        return self.out.with_suffix("")

    def run(self, root: Path, only: Lab | None) -> list[Record]:
        """Grade everything under `root`. Whatever happens, grades.csv shows what is known by then.

        Raises:
            UsageError: `root` is not a folder or a zip, or the results cannot be written.
        """
        with tempfile.TemporaryDirectory(prefix="minillm-grade-") as scratch:
            found = self._find(root, only, Path(scratch))
            key = self.rules.key()
            records = [self._known(submission, key) for submission in found]
            try:
                self._check_new(found, records, Path(scratch))
            finally:
                _flag_twins(records)
                self._write_all(found, records)
        return records

    def _find(self, root: Path, only: Lab | None, scratch: Path) -> list[Submission]:
        unpacked = scratch / "unpacked"
        unpacked.mkdir()
        try:
            self.results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"cannot write {self.results}: {why}", "choose another --out") from None
        try:
            ours = {self.out.resolve(), self.results.resolve()}
            found = find_submissions(root, all_labs(), only, unpacked, ours)
        except (OSError, BadZip) as error:
            raise UsageError(
                f"cannot grade {root}: {error}", "give a folder of submissions, or a zip"
            ) from None
        return found

    def _known(self, submission: Submission, key: Record) -> Record:
        """The old record if it is about the same file and was made by the same rules; else an empty one."""
        digest = sha256(submission.files) if submission.files else ""
        old = read_record(_with(place(self.results, submission), ".json"))
        record = {
            "student": submission.student,
            "lab": submission.lab.number if submission.lab else None,
            "title": submission.lab.title if submission.lab else "",
            "points": submission.lab.points if submission.lab else 0,
            "key": {**key, "files": digest},
            "status": "not graded",
            "problem": submission.problem or "not checked yet",
            "sha256": sha256(submission.files[:1]) if submission.files else "",
            "time": "",
            "seconds": 0.0,
            "flags": [],
            "report": None,
            "feedback": old.get("feedback", ""),
        }
        is_same = old.get("key") == record["key"] and old.get("student") == submission.student
        if is_same and old.get("report"):
            kept = {name: old[name] for name in ("status", "time", "seconds", "report")}
            record = {**record, **kept, "problem": ""}
        return record

    def _check_new(self, found: Sequence[Submission], records: list[Record], scratch: Path) -> None:
        new = [i for i, submission in enumerate(found) if submission.files and not records[i]["report"]]
        folder = scratch / "files"

        def request(i: int) -> Request:
            file = _written(found[i], folder / str(i))
            cases = str(self.rules.cases.resolve()) if self.rules.cases else None
            common = {"seed": self.rules.seed, "cases": cases, "refuse_copies": self.rules.refuse_copies}
            return {"lab": str(records[i]["lab"]), "file": str(file), **common}

        with Pool(self.jobs) as pool, Bar("grading", len(new)) as bar:
            for done, (i, report) in enumerate(pool.reports(new, request), start=1):
                shutil.rmtree(folder / str(i), ignore_errors=True)
                _take(records[i], report)
                self._write(found[i], records[i])
                bar.update(done)

    def _write(self, submission: Submission, record: Record) -> None:
        path = _with(place(self.results, submission), ".json")
        write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _write_all(self, found: Sequence[Submission], records: list[Record]) -> None:
        for submission, record in zip(found, records, strict=True):
            path = _with(place(self.results, submission), ".md")
            record["feedback"] = write_feedback(path, feedback(record, self.template), record["feedback"])
            self._write(submission, record)
        write_text(self.out, gradebook(records, all_labs()))


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _written(submission: Submission, folder: Path) -> Path:
    """A folder of its own for the check: the student's files, and nobody else's."""
    folder.mkdir(parents=True)
    for name, data in submission.files:
        (folder / name).write_bytes(data)
    return folder / submission.files[0][0]


def _take(record: Record, report: Record | None) -> None:
    """Put a report into the record of its submission."""
    record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    if report is None:
        record["problem"] = "the check was ended; grade it again"
        return
    record.update(status="graded", report=report, problem="", seconds=round(report.get("seconds", 0.0), 1))


def _flag_twins(records: Iterable[Record]) -> None:
    """Flags of a check (a copy of the engine), and of files with points that several students handed in."""
    twins: dict[tuple[int, str], list[Record]] = defaultdict(list)
    for record in records:
        report = record["report"] or {}
        record["flags"] = [f"copied {name}" for name in report.get("copied", ())]
        if report.get("earned"):
            twins[record["lab"], record["sha256"]].append(record)
    for group in twins.values():
        for record in group:
            others = [other["student"] for other in group if other is not record]
            if others:
                record["flags"].append(f"same file as {', '.join(others[:3])}")
