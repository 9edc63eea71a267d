"""Tokens that the files beside tokenizer.json add, name or mark as special.

tokenizer.json is the tokenizer. Three other files may say more about its tokens, and many published folders
say it only there. If such a token is missed, `<|im_start|>` becomes a dozen ordinary tokens:

    tokenizer_config.json     bos_token, eos_token, pad_token, ... and added_tokens_decoder: id -> token
    special_tokens_map.json   the same names        } read only where tokenizer_config.json
    added_tokens.json         token -> id           } has no added_tokens_decoder

A token with an id is added where tokenizer.json lacks it, and takes the flags given here. A token that is
only named is added as special. transformers 5 reads the files in this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from minillm.config.checks import shown
from minillm.config.files import exists, read_object
from minillm.errors import TokenizerError
from minillm.text.failures import tokenizer_failure

_NAMES = frozenset("bos_token eos_token unk_token sep_token pad_token cls_token mask_token".split())
_DECODER, _EXTRA = "added_tokens_decoder", "extra_special_tokens"
_FLAGS = frozenset("single_word lstrip rstrip normalized special".split())


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the names of special_tokens_map.json where those count.

    Raises:
        UnreadableFile, TokenizerError: a file cannot be read, or is no JSON object.
    """
    settings = _object(folder / "tokenizer_config.json")
    if not settings.get(_EXTRA):  # the name since transformers 5, and the older one
        settings[_EXTRA] = settings.pop("additional_special_tokens", None)
    if _DECODER not in settings:
        settings |= _object(folder / "special_tokens_map.json")
    return settings


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the named tokens by name ("bos_token", "image_token"): what chat templates may use."""
    return {name: text for name, token in _named(settings).items() if (text := _text(token))}


def add_tokens(rust: RustTokenizer, folder: Path, settings: Mapping[str, Any]) -> list[AddedToken]:
    """Add to `rust` the tokens that only the other files know, and return them.

    Raises:
        UnreadableFile: added_tokens.json cannot be read.
        TokenizerError: a token is malformed, or its id is not the one that it would get.
    """
    try:
        declared = _declared(settings) if _DECODER in settings else _from_file(folder, settings, rust)
        new = _missing(rust, settings, declared)
        expected = {i: t for i, t in declared.items() if rust.token_to_id(t.content) is None}
        rust.add_tokens(new)
    except BaseException as error:
        raise tokenizer_failure(error, "the added tokens make no sense", quote=True) from None
    for token_id, token in expected.items():
        if (given := rust.token_to_id(token.content)) != token_id:
            raise TokenizerError(
                f"the added token {shown(token.content)} should have the id {token_id}, "
                f"and tokenizer.json leaves {given} to it",
                "the tokenizer's files must come from the same model",
            )
    return new


def _declared(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens of added_tokens_decoder."""
    entries = settings[_DECODER] or {}
    if not isinstance(entries, dict):
        raise TokenizerError(f"added_tokens_decoder={shown(entries)} must be an object")
    return {_token_id(key): _token(entry) for key, entry in entries.items()}


def _from_file(folder: Path, settings: Mapping[str, Any], rust: RustTokenizer) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json that tokenizer.json does not list itself, with its own flags."""
    special = {_text(token) for token in (*_named(settings).values(), *_listed(settings.get(_EXTRA)))}
    own = rust.get_added_tokens_decoder()
    return {
        token_id: _token({"content": text, "special": text in special, "normalized": text not in special})
        for text, number in _object(folder / "added_tokens.json").items()
        if (token_id := _token_id(number)) not in own
    }


def _token_id(key: Any) -> int:
    is_number = type(key) is int or (isinstance(key, str) and key.isascii() and key.isdigit())
    if not is_number or not 0 <= int(str(key)[:20]) < 1 << 32:
        raise TokenizerError(f"an added token has the id {shown(key)}", "ids are integers from 0")
    return int(key)


def _missing(
    rust: RustTokenizer, settings: Mapping[str, Any], declared: Mapping[int, AddedToken]
) -> list[AddedToken]:
    """What `rust` lacks, or has with other flags. Order decides ids: those with an id come first."""
    own = rust.get_added_tokens_decoder().values()
    own_flags = {repr(token) for token in own}
    new = [declared[i] for i in sorted(declared) if repr(declared[i]) not in own_flags]
    names = {_text(token) for token in _named(settings).values()}
    for token in new:
        token.special = token.special or token.content in names
    known = {token.content for token in (*own, *new)}
    for token in _all_named(settings):
        if (text := _text(token)) and text not in known:
            new.append(_token(token, special=True))
            known.add(text)
    return new


def _all_named(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Tokens with a name, then the others that are listed as special."""
    yield from _named(settings).values()
    yield from _listed(settings.get(_EXTRA) or settings.get("additional_special_tokens"))


def _listed(tokens: Any) -> list[Any]:
    return tokens if isinstance(tokens, list) else []


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    extra = settings.get(_EXTRA)
    given = {**settings, **extra} if isinstance(extra, dict) else settings
    return {
        name: token
        for name, token in given.items()
        if name in _NAMES or (name.endswith("_token") and _text(token))
    }


def _token(entry: Any, special: bool = False) -> AddedToken:
    text = _text(entry)
    if not text:
        raise TokenizerError(f"{shown(entry)} is not an added token", "it needs a content")
    flags = {k: v for k, v in entry.items() if k in _FLAGS} if isinstance(entry, dict) else {}
    return AddedToken(text, **flags | ({"special": True} if special else {}))


def _text(token: Any) -> str:
    """A token's text; empty where it is none that a tokenizer can hold."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and is_unicode(text) else ""


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: JSON can hold lone surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(path: Path) -> dict[str, Any]:
    return read_object(path, TokenizerError) if exists(path) else {}
