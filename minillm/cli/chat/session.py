"""A conversation: its messages, and the commands that change it."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.config import SamplingParams, shown
from minillm.errors import UsageError

if TYPE_CHECKING:
    from minillm import LLM
    from minillm.engine.outputs import RequestOutput
    from minillm.llm import TextIterator

HELP = (
    "/help lists the commands; Ctrl-C stops an answer; Ctrl-D ends the chat",
    "/reset           forget the conversation, keep the system message",
    "/system [TEXT]   show or set the system message",
    "/save FILE       write the messages to a new JSON file",
    "/bye             end the chat",
    'a message of several lines stands between """ and """',
)
COMMANDS = ("/help", "/reset", "/system", "/save", "/bye")


class Session:
    """The messages so far. A question enters when its answer is there, so a refused one leaves no trace."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm, self._params = llm, params
        self._system = system
        self._turns: list[dict[str, str]] = []
        self._asked = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system message, if there is one, and all turns."""
        return [*([{"role": "system", "content": self._system}] if self._system else []), *self._turns]

    def ask(self, text: str) -> tuple[TextIterator, int]:
        """Start the answer to `text`; return its stream and the number of messages that no longer fit.

        Raises:
            MinillmError: the message is refused; the conversation is as before.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt, dropped = self._llm.chat_prompt(asked, "drop_oldest", self._params.max_tokens)
        seed = secrets.randbits(32) if self._params.seed is None else self._params.seed
        stream = self._llm.stream(prompt, replace(self._params, seed=seed))
        first = len(asked) - len(self._turns) - 1
        self._turns = [turn for i, turn in enumerate(self._turns, first) if i not in dropped]
        self._asked = text
        return stream, len(dropped)

    def keep(self, output: RequestOutput) -> None:
        """Add the question and its answer. An answer that failed before its first token is not kept."""
        if output.error is None or output.text:
            self._turns += [
                {"role": "user", "content": self._asked},
                {"role": "assistant", "content": output.text},
            ]

    @staticmethod
    def is_command(text: str, from_terminal: bool) -> bool:
        """Whether `text` is a command. On a terminal every first word with a slash is: it may be mistyped."""
        word = text.split(maxsplit=1)[0]
        return word in COMMANDS or (from_terminal and word.startswith("/") and word[1:].isalpha())

    def command(self, text: str) -> str | None:
        """Run a command; return what to say, or None to end the chat.

        Raises:
            UsageError: there is no such command, or its file cannot be written.
        """
        word, _, rest = text.partition(" ")
        if word == "/bye":
            return None
        if word == "/reset":
            self._turns = []
            return "the conversation is forgotten"
        if word == "/system":
            self._system = rest.strip() or self._system
            return f"system message: {self._system or 'none'}"
        if word == "/save":
            return self._save(rest.strip())
        if word == "/help":
            return "\n".join(HELP[1:])
        raise UsageError(f"there is no command {shown(word)}", f"commands: {' '.join(COMMANDS)}")

    def _save(self, name: str) -> str:
        if not name:
            raise UsageError("/save needs the name of a file", "e.g. /save chat.json")
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n")
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"cannot write {shown(name)}: {reason}", "choose another file") from None
        return f"{len(self.messages)} messages are in {path}"
