"""The options that decide how a file is judged: for `check`, for `grade` and for Gradescope."""

from __future__ import annotations

import argparse
from pathlib import Path

from minillm.errors import UsageError
from minillm.labs.classroom.record import Rules


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Add --seed, --cases and --refuse-copies."""
    parser.add_argument("--seed", type=int, default=0, help="add random cases from this seed (default: none)")
    parser.add_argument("--cases", type=Path, metavar="FILE", help="add the hidden cases in this Python file")
    parser.add_argument(
        "--refuse-copies", action="store_true", help="no points for a task whose part is the engine's own"
    )


def rules(args: argparse.Namespace) -> Rules:
    """The rules that the options describe.

    Raises:
        UsageError: there is no such file of cases.
    """
    if args.cases and not args.cases.is_file():
        raise UsageError(f"there is no file {args.cases}", "give --cases a Python file")
    return Rules(args.seed, args.cases, args.refuse_copies)
