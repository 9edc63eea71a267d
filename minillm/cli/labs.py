"""`minillm labs`: write a part of the engine yourself and run the engine with it.

A student's file is a program. `check` runs it in its own process with limits on time and memory. The limits
stop accidents. They are not a sandbox: do not check a file from a person whom you do not trust.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from minillm.errors import UsageError
from minillm.labs.grader import supervise, workspace
from minillm.labs.grader.registry import all_labs, find_lab, find_task
from minillm.labs.grader.report import as_json, print_report


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `labs` and its four commands to the command line."""
    parser = subparsers.add_parser("labs", help="labs: write a part of the engine, check it in the engine")
    commands = parser.add_subparsers(dest="labs_command", required=True, metavar="list|start|check|hint")
    commands.add_parser("list", help="the labs and their tasks")
    start = commands.add_parser("start", help="write a lab's handout and skeleton")
    check = commands.add_parser("check", help="run your file's parts, alone and in the engine")
    hint = commands.add_parser("hint", help="a hint for a task, such as 3.2")
    for command in (start, check):
        command.add_argument("lab", metavar="N", help="the lab's number")
        command.add_argument("--dir", type=Path, help="the lab's folder (default: labN_name here)")
    start.add_argument("--force", action="store_true", help="overwrite an existing file")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    hint.add_argument("task", metavar="N.k", help="the task's number")
    hint.add_argument("--level", type=int, default=1, help="1 (default) to 3, which gives most detail")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands. `check` returns 0 for full points, otherwise 1."""
    if args.labs_command == "list":
        return print_labs()
    if args.labs_command == "start":
        return start(args.lab, args.dir, args.force)
    if args.labs_command == "check":
        return check(args.lab, args.dir, args.json)
    return print_hint(args.task, args.level)


def print_labs() -> int:
    """Print a table of all labs with their tasks."""
    table = Table("task", "what", "points", title="minillm labs", title_justify="left")
    for lab in all_labs():
        table.add_row(Text(f"lab {lab.number}", style="bold"), Text(lab.title, style="bold"), str(lab.points))
        for task in lab.tasks:
            table.add_row(Text(f"  {task.number}"), Text(task.what), str(task.points))
        table.add_section()
    console = Console()
    console.print(table)
    console.print(Text("minillm labs start N writes the handout and your file; labs check N checks it"))
    return 0


def start(number: str, folder: Path | None, force: bool) -> int:
    """Write a lab's files and print the next steps."""
    lab = find_lab(number)
    file = workspace.start(lab, folder or Path(lab.folder), force)
    print(f"Lab {lab.number}: {lab.title}")
    print(f"  read    {file.parent / 'README.md'}")
    print(f"  write   {file}")
    print(f"  check   minillm labs check {lab.number}{f' --dir {folder}' if folder else ''}")
    return 0


def check(number: str, folder: Path | None, is_json: bool) -> int:
    """Check the student's file and print the result."""
    lab = find_lab(number)
    file = workspace.find_file(lab, folder)
    report = supervise.check(lab, file)
    if is_json:
        print(json.dumps(as_json(lab, file, report), indent=2))
    else:
        print_report(Console(), lab, file, report)
    return 0 if report.earned == lab.points else 1


def print_hint(number: str, level: int) -> int:
    """Print one hint, and the command for the next one."""
    lab, task = find_task(number)
    hints = lab.hints(number)
    if not 1 <= level <= len(hints):
        raise UsageError(f"task {number} has no hint of level {level}", f"levels: 1 to {len(hints)}")
    console = Console()
    console.print(Text(f"{number} {task.what}, hint {level} of {len(hints)}", style="bold"))
    console.print(Markdown(hints[level - 1]))
    if level < len(hints):
        console.print(Text(f"more: minillm labs hint {number} --level {level + 1}", style="dim"))
    return 0
