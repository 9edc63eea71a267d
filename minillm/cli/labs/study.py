"""`minillm labs list`, `start` and `hint`: what a student needs before the check."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from minillm.errors import UsageError
from minillm.labs.grader import workspace
from minillm.labs.grader.registry import all_labs, find_lab, find_task
from minillm.tables import folding_table


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the three commands."""
    listed = commands.add_parser("list", help="the labs and their tasks")
    listed.set_defaults(func=lambda _: print_labs())
    start = commands.add_parser("start", help="write a lab's handout and skeleton")
    start.add_argument("lab", metavar="N", help="the lab's number")
    start.add_argument("--dir", type=Path, help="the lab's folder (default: labN_name here)")
    start.add_argument("--force", action="store_true", help="overwrite an existing file")
    start.set_defaults(func=lambda args: start_lab(args.lab, args.dir, args.force))
    hint = commands.add_parser("hint", help="a hint for a task, such as 3.2")
    hint.add_argument("task", metavar="N.k", help="the task's number")
    hint.add_argument("--level", type=int, default=1, help="1 (default) to 3, which gives most detail")
    hint.set_defaults(func=lambda args: print_hint(args.task, args.level))


def print_labs() -> int:
    """Print a table of all labs with their tasks."""
    table = folding_table("task", "what", "points", title="minillm labs", title_justify="left")
    for lab in all_labs():
        table.add_row(Text(f"lab {lab.number}", style="bold"), Text(lab.title, style="bold"), str(lab.points))
        for task in lab.tasks:
            table.add_row(Text(f"  {task.number}"), Text(task.what), str(task.points))
        table.add_section()
    console = Console()
    console.print(table)
    console.print(Text("minillm labs start N writes the handout and your file; labs check N checks it"))
    return 0


def start_lab(number: str, folder: Path | None, force: bool) -> int:
    """Write a lab's files and print the next steps."""
    lab = find_lab(number)
    file = workspace.start(lab, folder or Path(lab.folder), force)
    print(f"Lab {lab.number}: {lab.title}")
    print(f"  read    {file.parent / 'README.md'}")
    print(f"  write   {file}")
    print(f"  check   minillm labs check {lab.number}{f' --dir {folder}' if folder else ''}")
    return 0


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
