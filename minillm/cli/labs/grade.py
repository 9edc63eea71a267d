"""`minillm labs grade DIR --out grades.csv`: mark a class."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

from minillm.cli.labs.options import add_rules, rules
from minillm.cli.signals import sigterm_interrupts
from minillm.errors import UsageError
from minillm.labs.classroom.feedback import read_template
from minillm.labs.classroom.grade import Grading, Record
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.report import SANDBOX


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `grade`."""
    grade = commands.add_parser("grade", help="for lecturers: check a folder of submissions")
    grade.add_argument(
        "dir", type=Path, metavar="DIR", help="folders per student, files like alice_lab3.py, zips"
    )
    grade.add_argument(
        "--out", type=Path, required=True, metavar="CSV", help="the gradebook; results go beside it"
    )
    grade.add_argument("--lab", metavar="N", help="grade only this lab; students without a file get a row")
    grade.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="checks at once (default: one per core)"
    )
    grade.add_argument("--template", type=Path, metavar="FILE", help="a template for the students' reports")
    add_rules(grade)
    grade.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Grade; 0 if every submission was graded, 1 if some could not be."""
    if args.jobs < 1:
        raise UsageError(f"--jobs is {args.jobs}", "give at least 1")
    if args.out.suffix != ".csv":
        raise UsageError(f"--out is {args.out}", "give a file that ends with .csv")
    only = find_lab(args.lab) if args.lab else None
    grading = Grading(args.out, rules(args), read_template(args.template), args.jobs)
    with sigterm_interrupts():
        records = grading.run(args.dir, only)
    _print_summary(grading, records)
    return 0 if all(record["report"] for record in records) else 1


def _print_summary(grading: Grading, records: list[Record]) -> None:
    counted = Counter(record["status"] for record in records)
    print(f"{counted['graded']} graded, {counted['not graded']} not graded")
    for record in records:
        if not record["report"]:
            lab = f", lab {record['lab']}" if record["lab"] else ""
            print(f"  {ascii(record['student'])[1:-1]}{lab}: {ascii(record['problem'])[1:-1]}")
    for sandbox in sorted({r["report"]["sandbox"] for r in records if r["report"]} - {SANDBOX}):
        print(f"  {sandbox}")
    print(f"  {grading.out}    points")
    print(f"  {grading.results}{os.sep}    a report for each student (.md), all details (.json)")
