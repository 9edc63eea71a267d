"""The parser of the command line: one-line errors that name the nearest option, and options given once."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from minillm.cli.streams import say

USAGE_ERROR = 2
DIFFERENT = 8  # of `verify`: something is not the same


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: what is wrong, the nearest name, and where the help is.

    `default_command`: the sub-command of arguments that name none of `commands`.
    """

    default_command: str | None = None
    commands: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, with the default command filled in."""
        named = (*self.commands, "-h", "--help")
        if self.default_command is not None and (not args or args[0] not in named):
            args = [self.default_command, *(args or [])]
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse everything; an argument that no command knows is an error with the nearest option."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = getattr(given, "parser", self)
            command.error(f"{_unknown(unknown[0])}{command.nearest(unknown[0])}")
        return given

    def nearest(self, word: str) -> str:
        """`; did you mean --top-k?` if an option of this command resembles `word`."""
        name = word.partition("=")[0]
        near = difflib.get_close_matches(name, list(self._option_string_actions), n=1, cutoff=0.6)
        return f"; did you mean {near[0]}?" if near else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's check of `choices`, with the nearest one in the message."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise argparse.ArgumentError(action, f"there is no {value!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        """End the program with one line and exit code 2."""
        say(f"minillm: {' '.join(message.split())}; `{self.prog} --help` lists what there is")
        sys.exit(USAGE_ERROR)


def _unknown(word: str) -> str:
    return f"there is no option {word}" if word.startswith("-") else f"{word!r} is one argument too many"


class Once(argparse.Action):
    """An option that may be given only once: of two texts, neither is silently dropped."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("_given", set())
        if self.dest in given:
            parser.error(f"{option_string} is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def nearest_command(word: str, commands: Sequence[str]) -> str:
    """`did you mean chat?`, or the list of commands."""
    near = difflib.get_close_matches(word, commands, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"commands: {', '.join(commands)}"
