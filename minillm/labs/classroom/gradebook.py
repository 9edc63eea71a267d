"""grades.csv: one row per submission, in the order of the names, for a spreadsheet.

A spreadsheet runs a cell that begins with = + - or @ as a formula. Names come from students, so such a cell
gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from minillm.labs.grader.lab import Lab

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_BLANK = " \u00a0\u200b\ufeff"


def gradebook(records: Sequence[dict[str, Any]], labs: Sequence[Lab]) -> str:
    """The table as CSV. Columns of tasks: those of every lab that has a row."""
    numbers = {record["lab"] for record in records}
    tasks = [task.number for lab in labs if lab.number in numbers for task in lab.tasks]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["student", "lab", "points", "of", *tasks, "status", "flags", "sha256", "seconds"])
    for record in records:
        table.writerow([safe(cell) for cell in _row(record, tasks)])
    return text.getvalue()


def safe(cell: Any) -> Any:
    """`cell` as a value that no spreadsheet runs."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(_BLANK).startswith(_FORMULA) else cell


def _row(record: dict[str, Any], tasks: list[str]) -> list[Any]:
    report = record["report"] or {}
    earned = {task["task"]: task["earned"] for task in report.get("tasks", ())}
    return [
        record["student"],
        record["lab"] or "",
        report.get("earned", 0),
        record["points"],
        *(earned.get(task, "") for task in tasks),
        record["status"] if record["report"] else f"{record['status']}: {record['problem']}",
        "; ".join(record["flags"]),
        record["sha256"],
        record["seconds"],
    ]
