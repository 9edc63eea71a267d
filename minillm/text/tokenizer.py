"""Text to token ids and back: tokenizer.json, the chat template, and what marks the end of text.

The Rust `tokenizers` library does the work; this file holds the rules around it. A chat template is
a program that came with a download, so it runs in jinja2's immutable sandbox.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as RustTokenizer

from minillm.errors import TokenizerError, UsageError

Message = Mapping[str, Any]


class Tokenizer:
    """A model folder's tokenizer. `bos_token_id` and `eos_token_id` are None where it has none."""

    def __init__(self, folder: Path, config_bos: int | None = None) -> None:
        try:
            self.rust = RustTokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception for every kind of damage
            raise TokenizerError(
                f"{folder / 'tokenizer.json'} cannot be read: {error}", "download the model again"
            ) from None
        self.settings = read_json(folder / "tokenizer_config.json")
        self.chat_template = _chat_template(folder, self.settings)
        self.bos_token_id = self._special_id("bos_token", config_bos)
        self.eos_token_id = self._special_id("eos_token", None)

    @cached_property
    def num_token_ids(self) -> int:
        """One more than the highest id the tokenizer can decode. Asked once a step; found out once."""
        return max(self.rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def vocabulary_digest(self) -> str:
        """SHA-256 of every token with its id: equal digests, and ids mean the same text."""
        vocabulary = self.rust.get_vocab(with_added_tokens=True)
        return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the tokenizer's own special tokens and never two BOS.

        Raises:
            UsageError: `text` is not valid Unicode.
        """
        ids = self._rust_ids(text, add_special_tokens)
        bos = self.bos_token_id
        if bos is None or not add_special_tokens:
            return ids
        wanted = self.settings.get("add_bos_token")
        if wanted is True and ids[:1] != [bos]:
            return [bos, *ids]
        unwanted = wanted is False and ids[:1] == [bos] and not self._starts_with_bos(text)
        return ids[1:] if unwanted or ids[:2] == [bos, bos] else ids

    def _rust_ids(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError("the text is not valid Unicode", "it holds a lone surrogate") from None
        return list(self.rust.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self.rust.decode(list(ids), skip_special_tokens=True))

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The prompt the chat template makes of `messages`, ready for the assistant's turn.

        Raises:
            UsageError: no template, a malformed message, or a template that refuses or fails.
        """
        check_messages(messages)
        if self.chat_template is None:
            raise UsageError(
                "this model has no chat template", "use generate, or add chat_template.jinja to its folder"
            )
        try:
            template = _environment().from_string(self.chat_template)
            return template.render(
                messages=[dict(m) for m in messages],
                add_generation_prompt=True,
                bos_token=self._token_text("bos_token"),
                eos_token=self._token_text("eos_token"),
            )
        except Exception as error:  # the template is a program: it can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"the chat template failed: {reason}", "check the order of roles") from None

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat; the template writes the special tokens itself."""
        return self.encode(self.render_chat(messages), add_special_tokens=False)

    def _token_text(self, key: str) -> str:
        token = self.settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else ""

    def _special_id(self, key: str, fallback: int | None) -> int | None:
        found = self.rust.token_to_id(self._token_text(key)) if self._token_text(key) else None
        return fallback if found is None else found

    def _starts_with_bos(self, text: str) -> bool:
        bos = self._token_text("bos_token")
        return bool(bos) and text.startswith(bos)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} where there is no file.

    Raises:
        TokenizerError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}", "download the model again") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} is not a JSON object", "download the model again")
    return content


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path} is not UTF-8: {error}", "download the model again") from None
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates: the one called default
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _environment() -> ImmutableSandboxedEnvironment:
    """The functions published templates rely on, and nothing else."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return env


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def check_messages(messages: Sequence[Message]) -> None:
    """Raise UsageError unless `messages` is a list of objects with a text role and a text content."""
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    for i, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise UsageError(f"message {i} has no text {key!r}", "each has a role and a content")
