"""`minillm labs`: write a part of the engine yourself and run the engine with it; grade a class.

A student's file is a program. `check` and `grade` run it in its own process with limits on time and memory.

students     study.py     list, start, hint
             check.py     check
             bench.py     bench
lecturers    grade.py     grade a folder of submissions
             export.py    a package for students without the solutions; Gradescope
"""

from __future__ import annotations

import argparse
from typing import Any

from minillm.cli.labs import bench, check, export, grade, study


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `labs` and its commands to the command line."""
    parser = subparsers.add_parser("labs", help="labs: write a part of the engine, check it in the engine")
    commands = parser.add_subparsers(
        dest="labs_command", required=True, metavar="list|start|check|hint|bench|grade|export"
    )
    for room in (study, check, bench, grade, export):
        room.add_commands(commands)
