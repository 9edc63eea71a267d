"""`minillm`: the entry point. Turns typed errors into one line and an exit code.

Sub-commands import what they need when they run, so `minillm --help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from minillm.cli import bench, chat, doctor, generate, inspect_model, labs
from minillm.errors import MinillmError

COMMANDS = (generate, chat, inspect_model, bench, doctor, labs)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see `errors.py`, and 130 for Ctrl-C)."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        code: int = args.func(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has what it wanted (`| head`). Keep the interpreter's last flush quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if args.debug:
            raise
        print("\nminillm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except MinillmError as error:
        if args.debug:
            raise
        print(f"minillm: {_one_line(error)}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minillm", description="A from-scratch LLM inference engine to read, learn from and use."
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks instead of one-line errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _one_line(error: MinillmError) -> str:
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
