"""Text to token ids and back: tokenizer.json, and what marks the beginning and the end of text.

The Rust `tokenizers` library does the work; this file holds the rules around it. They are transformers' own:
tokenizer.json alone decides whether a text gets a BOS, whatever `add_bos_token` says beside it, and its
`truncation` and `padding` belong to training. One rule is ours: where the tokenizer adds a BOS to a text that
begins with one, only one is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

from tokenizers import Tokenizer as RustTokenizer

from minillm.config.files import TOKENIZER_LIMIT, read_file
from minillm.errors import UsageError
from minillm.text.chat_template import Message, find_templates, pick_template, render
from minillm.text.failures import tokenizer_failure
from minillm.text.special_tokens import add_tokens, is_unicode, named_tokens, read_settings

FILE = "tokenizer.json"


class Tokenizer:
    """A model folder's tokenizer.

    Args:
        config_bos: config.json's `bos_token_id`, for a tokenizer that names none.
        eos_token_ids: the ids that end a text as the model's configuration gives them.

    Attributes:
        bos_token_id: put before every text if the tokenizer is set up so; None if there is none.
        eos_token_ids: each ends a text: the configuration's and the tokenizer's own; empty if no id does.
        special_tokens: texts of the tokens that have a name, as {"bos_token": "<s>"}.
        chat_templates: the templates by name; the one that counts without a name is "default".
        num_own_ids: one more than the highest id in tokenizer.json.
        digest: the SHA-256 of tokenizer.json, with the tokens that other files add.

    Raises:
        UnreadableFile, TokenizerError: one of its files cannot be read, or makes no sense.
    """

    def __init__(
        self, folder: Path, config_bos: int | None = None, eos_token_ids: tuple[int, ...] = ()
    ) -> None:
        content = read_file(folder / FILE, TOKENIZER_LIMIT)
        self.digest = hashlib.sha256(content).hexdigest()
        self.rust = _parse(content, folder / FILE)
        self.num_own_ids = self.num_token_ids
        settings = read_settings(folder)
        if added := add_tokens(self.rust, folder, settings):
            del self.num_token_ids
            self.digest = hashlib.sha256(content + repr(added).encode()).hexdigest()
        self.rust.encode_special_tokens = settings.get("split_special_tokens") is True
        self._stop_token_ids: dict[tuple[str, ...], tuple[int, ...]] = {}  # of the last stop strings
        self.special_tokens = named_tokens(settings)
        self.chat_templates = find_templates(folder, settings)
        self.bos_token_id = self._special_id("bos_token", config_bos)
        own_eos = self._special_id("eos_token", None)
        self.eos_token_ids = tuple(dict.fromkeys([*eos_token_ids, *([] if own_eos is None else [own_eos])]))

    @cached_property
    def num_token_ids(self) -> int:
        """One more than the highest id the tokenizer can decode. Every step asks, so it is kept."""
        return max(self.rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def vocabulary_digest(self) -> str:
        """SHA-256 of every token with its id. Tokenizers with equal digests give equal ids the same text."""
        vocabulary = self.rust.get_vocab(with_added_tokens=True)
        return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the tokenizer's own special tokens and never two BOS.

        Raises:
            UsageError: `text` is not a string, or not valid Unicode.
            TokenizerError: the tokenizer fails at it.
        """
        ids = self._rust_ids(text, add_special_tokens)
        doubled = ids[:2] == [self.bos_token_id] * 2
        return ids[1:] if doubled and add_special_tokens and self._adds_bos else ids

    @cached_property
    def _adds_bos(self) -> bool:
        """Whether the tokenizer itself puts a BOS before a text."""
        return self._rust_ids("", True)[:1] == [self.bos_token_id]

    def _rust_ids(self, text: str, add_special_tokens: bool) -> list[int]:
        if not isinstance(text, str):
            raise UsageError(f"encode takes text, not {type(text).__name__}")
        if not is_unicode(text):
            raise UsageError("the text is not valid Unicode", "it holds a lone surrogate")
        try:
            return list(self.rust.encode(text, add_special_tokens=add_special_tokens).ids)
        except BaseException as error:
            raise tokenizer_failure(error, "the tokenizer cannot encode this text") from None

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; special tokens are left out, or written as the tokenizer names them.

        Raises:
            UsageError: an id that is not an integer, or is outside the vocabulary; the error names its index.
            TokenizerError: the tokenizer fails at them.
        """
        if not isinstance(token_ids, list | tuple):
            raise UsageError(f"decode takes a list of token ids, not {type(token_ids).__name__}")
        for index, token_id in enumerate(token_ids):
            if type(token_id) is not int or not 0 <= token_id < self.num_token_ids:
                raise UsageError(
                    f"the token id at index {index} is not in the vocabulary",
                    f"ids are integers from 0 to {self.num_token_ids - 1}",
                )
        try:
            return str(self.rust.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        except BaseException as error:
            raise tokenizer_failure(error, "the tokenizer cannot decode these ids") from None

    @property
    def chat_template(self) -> str | None:
        """The template that counts without a name; None without one."""
        return self.chat_templates.get("default")

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        tokenize: Literal[True] = True,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        tokenize: Literal[False],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int] | str:
        """The prompt that the model's chat template makes of `messages`; `LLM.chat` uses the same.

        Args:
            messages: [{"role": ..., "content": ...}, ...].
            tools: JSON schemas of functions; documents: {"title": ..., "text": ...}, for templates that read
                them.
            chat_template: the name of one of the model's templates, or a template. None is "tool_use" with
                `tools`, if the model has it, else "default".
            tokenize: False gives text. The template writes the special tokens itself, so that
                `encode(text, add_special_tokens=False)` gives the token ids.
            add_generation_prompt: end with the header of the assistant's turn.
            variables: whatever else the template reads, as `enable_thinking=False`.

        Raises:
            UsageError: no template, a malformed message, or a template that refuses or fails.
        """
        given = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
        template = pick_template(self.chat_templates, chat_template, tools is not None)
        text = render(template, messages, {**self.special_tokens, **variables, **given})
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def stop_token_ids(self, stops: tuple[str, ...]) -> tuple[int, ...]:
        """The ids of the stop strings that are special tokens: those are no part of any text.

        Raises:
            UsageError: a special token stands inside a stop string, which could never match.
        """
        if stops not in self._stop_token_ids:
            self._stop_token_ids = {stops: tuple(i for stop in stops for i in self._special_ids(stop))}
        return self._stop_token_ids[stops]

    def _special_ids(self, stop: str) -> list[int]:
        ids = self._rust_ids(stop, add_special_tokens=False)
        special = [token_id for token_id in ids if token_id in self._special_token_ids]
        if special and ids != special[:1]:
            raise UsageError(
                "a stop string has a special token in it, which is no part of any text",
                "give the token alone, or use stop_token_ids",
            )
        return special

    @cached_property
    def _special_token_ids(self) -> frozenset[int]:
        added = self.rust.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def _special_id(self, name: str, fallback: int | None) -> int | None:
        found = self.rust.token_to_id(self.special_tokens.get(name, ""))
        return fallback if found is None else found


def _parse(content: bytes, path: Path) -> RustTokenizer:
    try:
        made = RustTokenizer.from_buffer(content)
        made.no_truncation()  # settings of training: a prompt is neither cut nor filled up
        made.no_padding()
        if getattr(made.model, "dropout", None) is not None:
            made.model.dropout = None  # merges left out at random: the same text would become other tokens
    except BaseException as error:
        raise tokenizer_failure(error, f"{path} is not a tokenizer", quote=True) from None
    return made
