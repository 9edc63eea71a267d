"""`minillm verify`: its sub-commands, and `same`: were two saved answers answers to the same request?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.cli import verify_diverge, verify_guarantees
from minillm.cli.parser import DIFFERENT, Parser
from minillm.config.checks import shortened, shown

if TYPE_CHECKING:
    from minillm.engine.same import Aspect


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command and its sub-commands."""
    parser = subparsers.add_parser(
        "verify",
        help="prove the guarantees of determinism here; compare answers or runs",
        usage="minillm verify [MODEL] [options] | same A.json B.json | diverge A.record B.record",
        epilog=f"`minillm verify {verify_guarantees.NAME} --help`: the options of `verify [MODEL]`",
    )
    commands = parser.add_subparsers(
        prog="minillm verify", dest="verify_command", metavar="[MODEL] | same | diverge"
    )
    verify_guarantees.add_parser(commands)
    _add_same(commands)
    verify_diverge.add_parser(commands)
    parser.default_command, parser.commands = verify_guarantees.NAME, tuple(commands.choices)


def _add_same(commands: argparse._SubParsersAction[Parser]) -> None:
    same = commands.add_parser(
        "same",
        help="were two saved answers answers to the same request?",
        description="Compare prompt bytes, token ids, weights, tokenizer, chat template, config, kernels, "
        "sampling, seed and answer of two outputs, and name the first that differs. Exit code 0: all are "
        f"the same; {DIFFERENT}: something differs.",
    )
    same.add_argument("a", type=Path, metavar="A.json", help="an output of minillm generate --json")
    same.add_argument("b", type=Path, metavar="B.json", help="another one")
    same.add_argument("--json", action="store_true", help="print one JSON object")
    same.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Compare; return 0 if all is the same."""
    from minillm.engine.same import compare, first_difference
    from minillm.engine.saved import read_output

    aspects = compare(read_output(args.a), read_output(args.b))
    first = first_difference(aspects)
    if args.json:
        print(json.dumps(_as_json(args, aspects, first)))
    else:
        _print(aspects, first)
    return DIFFERENT if first else 0


def _as_json(args: argparse.Namespace, aspects: list[Aspect], first: Aspect | None) -> dict[str, Any]:
    return {
        "files": [str(args.a), str(args.b)],
        "same": first is None,
        "first_difference": first.name if first else None,
        "aspects": [asdict(aspect) for aspect in aspects],
    }


def _print(aspects: list[Aspect], first: Aspect | None) -> None:
    width = max(len(aspect.name) for aspect in aspects)
    for aspect in aspects:
        print(f"{'same' if aspect.same else 'DIFFERS':<8} {aspect.name:<{width}}  {_line(aspect)}".rstrip())
    print(f"the first difference: {first.name}" if first else "the same request, and the same answer")


def _line(aspect: Aspect) -> str:
    if aspect.same:
        return aspect.note
    values = f"{_plain(aspect.a)} and {_plain(aspect.b)}"
    return f"{values}: {aspect.note}"


def _plain(text: str) -> str:
    """A value from a file as one line that a terminal can show."""
    return shortened(text) if text.isprintable() else shown(text)
