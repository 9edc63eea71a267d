"""The report for one student in Markdown, from a template that a lecturer can replace.

A template is a text with these names: $student $lab $title $earned $points $tasks $problem $details $time
$version $seed $sha256. `$$` is a dollar sign. A report that was edited is never overwritten.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from string import Template
from typing import Any

from minillm.errors import UsageError
from minillm.labs.classroom.record import write_text
from minillm.labs.grader.report import STATUS_WORDS

SHIPPED = Path(__file__).with_name("report.md")
NAMES = ("student lab title earned points tasks problem details time version seed sha256").split()


def read_template(path: Path | None) -> Template:
    """The template in `path`, or the shipped one.

    Raises:
        UsageError: it cannot be read, or has a name that no report has.
    """
    try:
        template = Template((path or SHIPPED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the template {path}: {error}", "it must be a text in UTF-8") from None
    unknown = [name for name in template.get_identifiers() if name not in NAMES]
    if unknown or not template.is_valid():
        what = f"an unknown name ${unknown[0]}" if unknown else "a $ that begins no name"
        raise UsageError(f"the template has {what}", f"names: {' '.join(NAMES)}; $$ is a dollar sign")
    return template


def feedback(record: dict[str, Any], template: Template) -> str:
    """The report of one record."""
    report = record["report"] or {}
    values = {
        **{name: _inline(str(record.get(name, ""))) for name in ("student", "title", "time", "sha256")},
        "lab": record["lab"] or "?",
        "earned": report.get("earned", 0),
        "points": record["points"],
        "version": record["key"]["version"],
        "seed": record["key"]["seed"],
        "problem": _inline(f"Not graded: {record['problem']}") if record["problem"] else "",
        "tasks": _table(report.get("tasks", [])),
        "details": "\n".join(_details(report)),
    }
    return re.sub(r"\n{4,}", "\n\n\n", template.substitute(values))


def write_feedback(path: Path, text: str, old_hash: str) -> str:
    """Write a report and return its hash; beside the old one (`.new.md`) if a person has changed that."""
    if path.exists():
        now = _digest(path.read_bytes().decode("utf-8", "replace"))
        if now != old_hash:
            if now != _digest(text):
                write_text(path.with_suffix(".new.md"), text)
            return old_hash
    write_text(path, text)
    return _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _table(tasks: list[dict[str, Any]]) -> str:
    rows = [
        f"| {task['task']} | {_inline(task['title'])} | {task['earned']} / {task['points']} "
        f"| {STATUS_WORDS[task['status']][0]} |"
        for task in tasks
    ]
    return (
        "\n".join(["| task | what | points | result |", "| --- | --- | --- | --- |", *rows]) if rows else ""
    )


def _details(report: dict[str, Any]) -> list[str]:
    """A paragraph per failed task, then what the file printed. Text from the file stands in code blocks.

    Of several tasks with one message (the file does not load) only the first is shown.
    """
    failures: dict[tuple[str, str], dict[str, Any]] = {}
    for task in report.get("tasks", []):
        if task["status"] not in ("ok", "todo"):
            failures.setdefault((task["message"], task["diagnosis"]), task)
    found = []
    for task in failures.values():
        lines = [task["message"]]
        if task["expected"] or task["actual"]:
            place = f" at {task['where']}" if task["where"] else ""
            lines += [f"first difference{place}", "expected", task["expected"], "actual", task["actual"]]
        found.append(f"### {task['task']} {_inline(task['title'])}\n\n{_block(lines)}\n")
        if task["diagnosis"]:
            found.append(f"Diagnosis: {_inline(task['diagnosis'])}\n")
    if report.get("output"):
        found.append(f"### What the file printed\n\n{_block([report['output']])}\n")
    return found


def _block(lines: list[str]) -> str:
    text = "\n".join(line for line in lines if line)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _inline(text: str) -> str:
    """`text` as one line without Markdown or HTML in it."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
