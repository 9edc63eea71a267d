"""Text to token ids and back: tokenizer.json, and what marks the beginning and the end of text.

The Rust `tokenizers` library does the work; this file holds the rules around it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

from tokenizers import Tokenizer as RustTokenizer

from minillm.config.files import TOKENIZER_LIMIT, exists, read_file, read_object
from minillm.errors import TokenizerError, UsageError
from minillm.text.chat_template import Message, find_template, render
from minillm.text.failures import tokenizer_failure

FILE = "tokenizer.json"


class Tokenizer:
    """A model folder's tokenizer.

    Args:
        config_bos: config.json's `bos_token_id`, for a tokenizer that names none.
        eos_token_ids: the ids that end a text as the model's configuration gives them; the tokenizer's own
            where that gives none.

    Attributes:
        bos_token_id: put before every text if the tokenizer is set up so; None if there is none.
        eos_token_ids: each ends a text; empty if no id does.
        digest: the SHA-256 of tokenizer.json.

    Raises:
        UnreadableFile, TokenizerError: one of its files cannot be read, or makes no sense.
    """

    def __init__(
        self, folder: Path, config_bos: int | None = None, eos_token_ids: tuple[int, ...] = ()
    ) -> None:
        content = read_file(folder / FILE, TOKENIZER_LIMIT)
        self.digest = hashlib.sha256(content).hexdigest()
        self.rust = _parse(content, folder / FILE)
        settings = folder / "tokenizer_config.json"
        self.settings = read_object(settings, TokenizerError) if exists(settings) else {}
        self.chat_template = find_template(folder, self.settings)
        self.bos_token_id = self._special_id("bos_token", config_bos)
        own_eos = self._special_id("eos_token", None)
        self.eos_token_ids = eos_token_ids or (() if own_eos is None else (own_eos,))

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
        bos = self.bos_token_id
        if bos is None or not add_special_tokens:
            return ids
        wanted = self.settings.get("add_bos_token")
        if wanted is True and ids[:1] != [bos]:
            return [bos, *ids]
        unwanted = wanted is False and ids[:1] == [bos] and not self._starts_with_bos(text)
        return ids[1:] if unwanted or ids[:2] == [bos, bos] else ids

    def _rust_ids(self, text: str, add_special_tokens: bool) -> list[int]:
        if not isinstance(text, str):
            raise UsageError(f"encode takes text, not {type(text).__name__}")
        if not _is_unicode(text):
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

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tokenize: Literal[True] = True,
        add_generation_prompt: bool = True,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self, messages: Sequence[Message], *, tokenize: Literal[False], add_generation_prompt: bool = True
    ) -> str: ...

    def apply_chat_template(
        self, messages: Sequence[Message], *, tokenize: bool = True, add_generation_prompt: bool = True
    ) -> list[int] | str:
        """The prompt that the model's chat template makes of `messages`; `LLM.chat` uses the same.

        Args:
            messages: [{"role": ..., "content": ...}, ...].
            tokenize: False gives text. The template writes the special tokens itself, so that
                `encode(text, add_special_tokens=False)` gives the token ids.
            add_generation_prompt: end with the header of the assistant's turn.

        Raises:
            UsageError: no template, a malformed message, or a template that refuses or fails.
        """
        variables = {key: self._token_text(key) for key in ("bos_token", "eos_token")}
        text = render(
            self.chat_template, messages, {**variables, "add_generation_prompt": add_generation_prompt}
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _token_text(self, key: str) -> str:
        token = self.settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) and _is_unicode(text) else ""

    def _special_id(self, key: str, fallback: int | None) -> int | None:
        found = self.rust.token_to_id(self._token_text(key)) if self._token_text(key) else None
        return fallback if found is None else found

    def _starts_with_bos(self, text: str) -> bool:
        bos = self._token_text("bos_token")
        return bool(bos) and text.startswith(bos)


def _parse(content: bytes, path: Path) -> RustTokenizer:
    try:
        made = RustTokenizer.from_buffer(content)
        made.no_truncation()  # settings of training: a prompt is neither cut nor filled up
        made.no_padding()
    except BaseException as error:
        raise tokenizer_failure(error, f"{path} is not a tokenizer", quote=True) from None
    return made


def _is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: JSON can hold lone surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
