"""`minillm demo`: look at a running engine.

pressure.py   pressure    latency, memory and batching while context and concurrency grow
saved.py                  its files
replay.py     replay      a recorded run as a page for the browser
"""

from __future__ import annotations

import argparse
from typing import Any

from minillm.cli.demo import pressure, replay

COMMANDS = (pressure, replay)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `demo` and its commands to the command line."""
    parser = subparsers.add_parser("demo", help="look at what an engine did, step by step")
    commands = parser.add_subparsers(
        dest="demo_command", required=True, metavar="|".join(command.NAME for command in COMMANDS)
    )
    for command in COMMANDS:
        command.add_command(commands)
