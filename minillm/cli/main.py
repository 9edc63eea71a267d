"""`minillm`: the entry point. A typed error becomes one line and an exit code.

Sub-commands import what they need when they run, so `minillm --help` does not wait for torch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from minillm.cli import (
    bench,
    chat,
    convert,
    demo,
    doctor,
    generate,
    inspect_model,
    labs,
    models,
    pull,
    quantize,
    streams,
    verify,
)
from minillm.cli.parser import USAGE_ERROR, Parser, nearest_command
from minillm.cli.signals import TERMINATED, Terminated
from minillm.errors import MinillmError
from minillm.version import __version__

COMMANDS = (generate, chat, pull, models, convert, quantize, inspect_model, bench, verify, demo, doctor, labs)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code (see `errors.py`; 130 after Ctrl-C, 143 after SIGTERM)."""
    streams.prepare()
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)[:1]
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except (BrokenPipeError, SystemExit) as error:  # the reader has closed the pipe (`| head`)
        # rich turns a BrokenPipeError into SystemExit(1).
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        streams.abandon(sys.stdout)
        streams.abandon(sys.stderr)
        return 0
    except Terminated:
        if debug:
            raise
        streams.say("minillm: terminated")
        return TERMINATED
    except KeyboardInterrupt:
        if debug:
            raise
        streams.say("\nminillm: interrupted")
        return INTERRUPTED
    except MinillmError as error:
        if isinstance(error, streams.StdoutFailed):
            streams.abandon(sys.stdout)
        if debug:
            raise
        streams.say(f"minillm: {_one_line(error)}")
        return error.exit_code


def _run(argv: Sequence[str] | None) -> int:
    parser, commands = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(_with_help(parser, words, commands))
    if args.command is None:
        parser.print_help()
        return USAGE_ERROR
    with _status_on_stderr(quiet=getattr(args, "quiet", False)):
        code: int = args.func(args)
    return code


def _with_help(parser: Parser, words: list[str], commands: Sequence[str]) -> list[str]:
    """`help chat` as `chat --help`; the nearest name for a command that does not exist."""
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in commands:
        parser.error(f"there is no command {first!r}; {nearest_command(first, commands)}")
    return words


@contextmanager
def _status_on_stderr(quiet: bool) -> Iterator[None]:
    """Print the messages of the logger `minillm` from level INFO on; with `quiet`, from level WARNING on."""
    logger, handler = logging.getLogger("minillm"), streams.StatusHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _parser() -> tuple[Parser, list[str]]:
    """The parser, and the names of the commands."""
    parser = Parser(
        prog="minillm", description="A from-scratch LLM inference engine to read, learn from and use."
    )
    parser.add_argument("--version", action="version", version=f"minillm {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks instead of one-line errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add_parser(commands)
    for command_parser in commands.choices.values():
        command_parser.set_defaults(parser=command_parser)
    return parser, list(commands.choices)


def _one_line(error: MinillmError) -> str:
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
