"""`minillm labs export N DIR`: a package without the solutions, or an autograder for Gradescope."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minillm.cli.labs.options import add_rules, rules
from minillm.labs.grader.registry import find_lab


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `export`."""
    export = commands.add_parser(
        "export", help="for lecturers: a lab as a package for students, or for Gradescope"
    )
    export.add_argument("lab", metavar="N", help="the lab's number")
    export.add_argument("dir", type=Path, metavar="DIR", help="where to write; empty or new")
    kind = export.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--no-solutions",
        action="store_true",
        help="an engine without this lab's parts, with recorded answers",
    )
    kind.add_argument("--gradescope", action="store_true", help="an autograder.zip with the whole engine")
    add_rules(export)
    export.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Export; prints what to do next."""
    lab = find_lab(args.lab)
    if args.gradescope:
        from minillm.labs.classroom.gradescope import export_autograder  # imports torch

        archive = export_autograder(lab, args.dir, rules(args))
        print(f"Lab {lab.number} for Gradescope: {archive}")
        print("  upload it as the autograder of a programming assignment; students hand in " + lab.file)
        return 0
    from minillm.labs.classroom.package import export_package

    export_package(lab, args.dir)
    print(f"Lab {lab.number} for students: {args.dir}")
    print(f"  try it   pip install -e {args.dir}; cd {args.dir}; minillm labs check {lab.number}")
    return 0
