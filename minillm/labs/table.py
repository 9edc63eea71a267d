"""A check's rows for people (a table, and under it what went wrong) and for programs (one object)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from minillm.labs.lab import Lab
from minillm.labs.row import Row, Status
from minillm.labs.supervise import Report

RESULTS: dict[Status, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "todo": ("not written yet", "yellow"),
    "wrong": ("wrong answer", "red"),
    "error": ("raises an error", "red"),
    "timeout": ("takes too long", "red"),
    "memory": ("takes too much memory", "red"),
    "crash": ("ends the process", "red"),
    "missing": ("not in the file", "red"),
    "unloadable": ("file does not load", "red"),
}


def as_json(lab: Lab, file: Path, report: Report) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "lab": lab.number,
        "title": lab.title,
        "file": str(file),
        "points": lab.points,
        "earned": report.earned,
        "ok": report.earned == lab.points,
        "tasks": [asdict(row) for row in report.rows],
        "output": report.output,
    }


def print_report(console: Console, lab: Lab, file: Path, report: Report) -> None:
    """The table of tasks, then each failure with its place, a corner of both answers and the diagnosis."""
    table = Table(
        "task", "what", "points", "result", title=f"Lab {lab.number}: {lab.title}", title_justify="left"
    )
    for row in report.rows:
        word, style = RESULTS[row.status]
        points = f"{row.earned} / {row.points}"
        table.add_row(Text(row.task), Text(row.title), Text(points, justify="right"), Text(word, style=style))
    console.print(table)
    for row in _told_once(report.rows):
        console.print(_failure(row))
    if report.output:
        console.print(Text("What the file printed (the beginning):", style="dim"))
        console.print(Padding(Text(report.output.rstrip()), (0, 0, 0, 2)))
    console.print(Text(f"{report.earned} of {lab.points} points ({file})", style="bold"))


def _told_once(rows: list[Row]) -> list[Row]:
    """The rows that need words; of those with the same words (a file that does not load) only the first."""
    told: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.status not in ("ok", "todo"):
            told.setdefault((row.message, row.diagnosis), row)
    return list(told.values())


def _failure(row: Row) -> Text:
    """What is known of one failed task."""
    text = Text()
    text.append(f"{row.task} ", style="bold").append(row.message).append("\n")
    if row.expected or row.actual:
        text.append(f"    first difference{' at ' + row.where if row.where else ''}\n", style="dim")
        text.append(_block("expected", row.expected)).append(_block("actual", row.actual))
    if row.diagnosis:
        text.append("    diagnosis  ", style="dim").append(row.diagnosis + "\n", style="bold yellow")
    elif row.status in ("wrong", "error"):
        text.append(f"    hint       minillm labs hint {row.task}\n", style="dim")
    return text


def _block(name: str, lines: str) -> str:
    """`lines` behind a name, later lines under the first."""
    first, *rest = lines.splitlines() or [""]
    return "\n".join([f"    {name:<10} {first}", *(" " * 15 + line for line in rest)]) + "\n"
