"""Gradescope: a zip with the whole engine that grades one lab, and its run for one submission.

    autograder.zip                               /autograder on Gradescope's machine
        setup.sh             run once                run_autograder
        run_autograder       run per submission      source/      this zip
        rules.json           lab, seed, ...          submission/  the student's files
        cases.py             hidden cases            results/     results.json
        minillm/             the engine

Format: "Autograder Specifications" in Gradescope's documentation. `results.json` is written whatever happens:
without it a student sees only that the autograder failed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minillm
from minillm.errors import MinillmError, UsageError
from minillm.labs.classroom.package import DEPENDENCIES
from minillm.labs.classroom.record import Rules
from minillm.labs.classroom.submissions import single_submission
from minillm.labs.classroom.worker import checked
from minillm.labs.grader.lab import Lab
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.report import STATUS_WORDS, as_json
from minillm.toolchain.sources import csrc

FILES = Path(__file__).parent / "gradescope_files"
ENGINE = Path(minillm.__file__).resolve().parent
_EXECUTABLE = 0o100755 << 16  # the mode in a zip's table
_SHOWN = ("message", "where", "expected", "actual", "diagnosis")


# --- the zip ------------------------------------------------------------------------------------------


def export_autograder(lab: Lab, folder: Path, rules: Rules) -> Path:
    """Write `autograder.zip` for `lab` to `folder` and return its path.

    Raises:
        UsageError: it cannot be written.
    """
    target = folder / "autograder.zip"
    settings = {"lab": str(lab.number), "seed": rules.seed, "refuse_copies": rules.refuse_copies}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("setup.sh", "run_autograder"):
                entry = zipfile.ZipInfo(name)
                entry.external_attr, entry.compress_type = _EXECUTABLE, zipfile.ZIP_DEFLATED
                archive.writestr(entry, (FILES / name).read_text(encoding="utf-8"))
            archive.writestr("requirements.txt", "\n".join(DEPENDENCIES) + "\n")
            archive.writestr("rules.json", json.dumps(settings) + "\n")
            if rules.cases:
                archive.write(rules.cases, "cases.py")
            for path, name in _engine():
                archive.write(path, name)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}", "choose another folder") from None
    return target


def _engine() -> Iterator[tuple[Path, str]]:
    """The files of the engine and their names in the zip; no trained models."""
    for root, top in ((ENGINE, "minillm"), (csrc(), "minillm/csrc")):
        for path in sorted(root.rglob("*")):
            place = path.relative_to(root)
            if (
                path.is_file()
                and place.parts[0] not in ("zoo", "csrc", "kernels")
                and "__pycache__" not in place.parts
            ):
                yield path, f"{top}/{place.as_posix()}"


# --- the run ------------------------------------------------------------------------------------------


def main() -> int:
    """argv: the folder that is /autograder on Gradescope. Always writes results/results.json."""
    root, start = Path(sys.argv[1]), time.monotonic()
    try:
        results = graded(root)
    except MinillmError as error:
        results = _failure(f"The autograder failed: {error}")
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # for the instructor
        results = _failure("The autograder failed. Please tell your instructor.")
    results["execution_time"] = round(time.monotonic() - start, 1)
    (root / "results").mkdir(exist_ok=True)
    (root / "results" / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    return 0


def graded(root: Path) -> dict[str, Any]:
    """The results of the submission, in Gradescope's format."""
    settings = json.loads((root / "source" / "rules.json").read_text(encoding="utf-8"))
    cases = root / "source" / "cases.py"
    lab = find_lab(settings["lab"])
    rules = Rules(settings["seed"], cases if cases.exists() else None, settings["refuse_copies"])
    with tempfile.TemporaryDirectory() as scratch:
        submission = single_submission(root / "submission", lab, Path(scratch))
        if submission.problem:
            return _failure(f"Not graded: {submission.problem}. Hand in {lab.file}.", lab)
        folder = Path(scratch) / "file"
        folder.mkdir()
        for name, data in submission.files:
            (folder / name).write_bytes(data)
        report = as_json(lab, folder / lab.file, checked(lab, folder / lab.file, rules))
    return {
        "score": report["earned"],
        "output": f"{report['earned']} of {lab.points} points for {lab.title}",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": [_test(task) for task in report["tasks"]],
        "extra_data": {
            name: report[name] for name in ("version", "sha256", "seed", "copied") if name in report
        },
    }


def _test(task: dict[str, Any]) -> dict[str, Any]:
    """One task as a test. Text from the student's file is shown as it is, never as HTML."""
    lines = [STATUS_WORDS[task["status"]][0], *(f"{task[name]}" for name in _SHOWN if task[name])]
    return {
        "number": task["task"],
        "name": task["title"],
        "score": task["earned"],
        "max_score": task["points"],
        "status": "passed" if task["earned"] == task["points"] else "failed",
        "output": "\n".join(lines),
        "output_format": "text",
        "visibility": "visible",
    }


def _failure(why: str, lab: Lab | None = None) -> dict[str, Any]:
    """Results without points: every task of the lab failed."""
    tests = [
        {"number": t.number, "name": t.title, "score": 0, "max_score": t.points, "status": "failed"}
        | {"output": "not graded", "output_format": "text", "visibility": "visible"}
        for t in (lab.tasks if lab else ())
    ]
    return {"score": 0, "output": why, "visibility": "visible", "stdout_visibility": "hidden", "tests": tests}


if __name__ == "__main__":
    sys.exit(main())
