"""`minillm labs check N`: run a student's file, alone and in the engine; `check all` runs a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minillm.cli.labs.options import add_rules, rules
from minillm.errors import UsageError
from minillm.labs.classroom.record import Rules
from minillm.labs.grader import workspace
from minillm.labs.grader.lab import Lab
from minillm.labs.grader.registry import all_labs, find_lab
from minillm.labs.grader.report import Report, as_json, print_report
from minillm.tables import folding_table


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `check`."""
    check = commands.add_parser("check", help="run your file's parts, alone and in the engine")
    check.add_argument("lab", metavar="N|all", help="the lab's number, or all: every lab in the folder")
    check.add_argument("--dir", type=Path, help="the lab's folder (default: labN_name here)")
    check.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_rules(check)
    check.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Check one file or all; 0 for full points, otherwise 1."""
    if args.lab == "all":
        return check_all(args.dir or Path(), rules(args), args.json)
    return check_one(find_lab(args.lab), args.dir, rules(args), args.json)


def check_one(lab: Lab, folder: Path | None, how: Rules, is_json: bool) -> int:
    """Check the student's file and print the result."""
    from minillm.labs.classroom.worker import checked  # imports torch: `minillm --help` must not wait

    file = workspace.find_file(lab, folder)
    report = checked(lab, file, how)
    if is_json:
        print(json.dumps(as_json(lab, file, report), indent=2))
    else:
        print_report(Console(), lab, file, report)
    return 0 if report.earned == lab.points else 1


def check_all(folder: Path, how: Rules, is_json: bool) -> int:
    """Check every lab that has a file in `folder` or in its own folder there."""
    from minillm.labs.classroom.worker import checked

    found = [(lab, file) for lab in all_labs() if (file := _file(lab, folder))]
    if not found:
        raise UsageError(
            f"there is no lab's file in {folder.resolve()}", "minillm labs start N, or give --dir"
        )
    reports = [checked(lab, file, how) for lab, file in found]
    if is_json:
        results = [as_json(lab, file, report) for (lab, file), report in zip(found, reports, strict=True)]
        print(json.dumps(results, indent=2))
    else:
        Console().print(_table([lab for lab, _ in found], reports))
        print("for the failures of one lab: minillm labs check N")
        if reports[0].no_sandbox:
            print(reports[0].sandbox)
    return (
        0 if all(report.earned == lab.points for (lab, _), report in zip(found, reports, strict=True)) else 1
    )


def _file(lab: Lab, folder: Path) -> Path | None:
    places = [folder / lab.file, folder / lab.folder / lab.file]
    return next((place for place in places if place.is_file()), None)


def _table(labs: list[Lab], reports: list[Report]) -> Table:
    table = folding_table(
        "lab", "what", "points", "open or failed", title="minillm labs", title_justify="left"
    )
    for lab, report in zip(labs, reports, strict=True):
        lost = " ".join(result.task for result in report.results if result.status != "ok")
        points = Text(f"{report.earned} / {lab.points}", justify="right")
        table.add_row(str(lab.number), Text(lab.title), points, Text(lost))
    return table
