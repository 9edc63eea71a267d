"""The results of a check, for people (a table, then the failures) and for programs (one object)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from minillm.labs.grader.lab import Lab
from minillm.labs.grader.result import Status, TaskResult
from minillm.tables import folding_table
from minillm.version import __version__

SANDBOX = "bubblewrap"
STATUS_WORDS: dict[Status, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "todo": ("not written yet", "yellow"),
    "wrong": ("wrong answer", "red"),
    "error": ("raises an error", "red"),
    "timeout": ("takes too long", "red"),
    "memory": ("uses too much memory", "red"),
    "crash": ("ends the process", "red"),
    "missing": ("not in the file", "red"),
    "unloadable": ("file does not load", "red"),
    "earlier": ("for an earlier version", "yellow"),
    "engine": ("the engine's own code", "red"),
    "refused": ("not allowed", "red"),
    "held": ("needs other tasks", "yellow"),
}


@dataclass
class Report:
    """All results of a lab, and the beginning of the file's output.

    `copied`: the tasks whose code is the engine's, up to names. `sha256`: of the file. `no_sandbox`: why the
    file ran without one; "" if it ran in one.
    """

    results: list[TaskResult]
    output: str
    copied: list[str] = field(default_factory=list)
    sha256: str = ""
    seed: int = 0
    no_sandbox: str = ""

    @property
    def sandbox(self) -> str:
        """Its name, or that there is none and why."""
        return f"no sandbox on this system: {self.no_sandbox}" if self.no_sandbox else SANDBOX

    @property
    def earned(self) -> int:
        """The sum of the points."""
        return sum(result.earned for result in self.results)


def as_json(lab: Lab, file: Path, report: Report) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "lab": lab.number,
        "title": lab.title,
        "file": str(file),
        "points": lab.points,
        "earned": report.earned,
        "ok": report.earned == lab.points,
        "tasks": [asdict(result) for result in report.results],
        "output": report.output,
        "copied": report.copied,
        "seed": report.seed,
        "sandbox": report.sandbox,
        "version": __version__,
        "sha256": report.sha256,
        "seconds": round(sum(result.seconds for result in report.results), 2),
    }


def print_report(console: Console, lab: Lab, file: Path, report: Report) -> None:
    """Print the table of tasks, then each failure: its place, a part of both answers, and the diagnosis."""
    table = folding_table(
        "task", "what", "points", "result", title=f"Lab {lab.number}: {lab.title}", title_justify="left"
    )
    for result in report.results:
        word, style = STATUS_WORDS[result.status]
        points = f"{result.earned} / {result.points}"
        table.add_row(
            Text(result.task), Text(result.title), Text(points, justify="right"), Text(word, style=style)
        )
    console.print(table)
    for result in _failures(report.results):
        console.print(_failure(result))
    if report.output:
        console.print(Text("Output of the file (the beginning):", style="dim"))
        console.print(Padding(Text(report.output.rstrip()), (0, 0, 0, 2)))
    if report.copied:
        console.print(Text(f"The engine's own code, up to names: {', '.join(report.copied)}", style="yellow"))
    if report.no_sandbox:
        console.print(Text(report.sandbox, style="dim"))
    console.print(Text(f"{report.earned} of {lab.points} points ({file})", style="bold"))


def _failures(results: list[TaskResult]) -> list[TaskResult]:
    """The failed results; of several with the same message (the file does not load) only the first."""
    failures: dict[tuple[str, str], TaskResult] = {}
    for result in results:
        if result.status not in ("ok", "todo"):
            failures.setdefault((result.message, result.diagnosis), result)
    return list(failures.values())


def _failure(result: TaskResult) -> Group:
    """The message, lines of the file, difference and diagnosis of one failed task."""
    text = Text()
    text.append(f"{result.task} ", style="bold").append(result.message).append("\n")
    for line in result.source.splitlines():
        text.append(f"    {line}\n", style="cyan")
    if result.expected or result.actual:
        text.append(f"    first difference{' at ' + result.where if result.where else ''}\n", style="dim")
    after = Text()
    if result.diagnosis:
        after.append("    diagnosis  ", style="dim").append(result.diagnosis + "\n", style="bold yellow")
    elif result.status in ("wrong", "error"):
        after.append(f"    hint       minillm labs hint {result.task}\n", style="dim")
    if result.rows:
        return Group(_stripped(text), Padding(_rows(result), (0, 0, 0, 4)), after)
    if result.expected or result.actual:
        text.append(_block("expected", result.expected)).append(_block("actual", result.actual))
    return Group(_stripped(text), after)


def _stripped(text: Text) -> Text:
    text.rstrip()
    return text


def _rows(result: TaskResult) -> Table:
    """The items around the first difference, the different one in bold."""
    table = Table("", "expected", "actual", box=None, padding=(0, 2, 0, 0))
    for place, expected, actual in result.rows:
        style = "bold" if place.startswith(">") else "dim"
        table.add_row(Text(place), Text(expected), Text(actual), style=style)
    return table


def _block(name: str, lines: str) -> str:
    """The name, then `lines`; all lines are aligned with the first."""
    first, *rest = lines.splitlines() or [""]
    return "\n".join([f"    {name:<10} {first}", *(" " * 15 + line for line in rest)]) + "\n"
