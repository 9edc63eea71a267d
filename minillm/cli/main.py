"""`minillm`: the entry point. A typed error becomes one line and an exit code.

Sub-commands import what they need when they run, so `minillm --help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from minillm.cli import bench, chat, convert, doctor, generate, inspect_model, labs, models, pull
from minillm.errors import MinillmError
from minillm.version import __version__

COMMANDS = (generate, chat, pull, models, convert, inspect_model, bench, doctor, labs)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code (see `errors.py`; 130 after Ctrl-C)."""
    parser = _parser()
    args = parser.parse_args(argv)
    with _status_on_stderr(quiet=getattr(args, "quiet", False)):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        code: int = args.func(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`). The interpreter's last flush must not fail either.
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


@contextmanager
def _status_on_stderr(quiet: bool) -> Iterator[None]:
    """Print the messages of the logger `minillm` from level INFO on; with `quiet`, from level WARNING on."""
    logger, handler = logging.getLogger("minillm"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("minillm: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minillm", description="A from-scratch LLM inference engine to read, learn from and use."
    )
    parser.add_argument("--version", action="version", version=f"minillm {__version__}")
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
