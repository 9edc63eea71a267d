"""`minillm chat`: a conversation in the terminal, or messages from a pipe, one per line."""

from __future__ import annotations

import argparse
import sys

from minillm.cli.generate import print_stream, stats_line
from minillm.cli.options import (
    add_draft_options,
    add_engine_options,
    add_sampling_options,
    dim,
    draft_options,
    load_llm,
    sampling_params,
)
from minillm.errors import UsageError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model",
        description="Each line is a message. An empty line or Ctrl-D ends the chat. Ctrl-C stops an answer. "
        "The model that ships tells stories: write a sentence, and it continues.",
    )
    parser.add_argument("--system", help="the system message")
    add_sampling_options(parser)
    add_engine_options(parser)
    add_draft_options(parser)
    parser.add_argument(
        "--quiet", action="store_true", help="no prompt sign, no stats lines, no progress, only warnings"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Chat until the input ends."""
    llm = load_llm(args, **draft_options(args))
    params = sampling_params(args, llm.default_params)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    while (text := _read_message(args.quiet)) is not None:
        messages.append({"role": "user", "content": text})
        ids, dropped = llm.chat_prompt(messages, on_overflow="drop_oldest")
        if dropped:
            print(dim(f"[{len(dropped)} oldest messages no longer fit the context]"), file=sys.stderr)
        stream = llm.stream(ids, params)
        print_stream(stream)
        messages.append({"role": "assistant", "content": stream.result.text})
        if not args.quiet:
            print(dim(stats_line(stream.result)), file=sys.stderr)
        if stream.result.error:
            raise stream.result.error
    return 0


def _read_message(quiet: bool) -> str | None:
    """The next non-empty line of stdin; None at its end, or at an empty line on a terminal."""
    if not quiet and sys.stdin.isatty():
        print(dim("> "), end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline()
        while line and not line.strip() and not sys.stdin.isatty():
            line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8: {error.reason} at offset {error.start}") from None
    return line.strip() or None
