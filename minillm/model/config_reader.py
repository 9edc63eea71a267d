"""Typed reads from a config.json, each remembering where the value came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from minillm.errors import UnsupportedModel

_REQUIRED = object()


class ConfigReader:
    """A raw config with checked access; `sources` says which values were given and which default."""

    def __init__(self, raw: Mapping[str, Any], file: str = "config.json") -> None:
        self.raw, self.file = raw, file
        self.sources: dict[str, str] = {}

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is not None:
            self.sources[key] = self.file
            return value
        if default is _REQUIRED:
            raise UnsupportedModel(f"{self.file} has no {key}", "the model cannot be built without it")
        self.sources[key] = "default"
        return default

    def integer(self, key: str, default: Any = _REQUIRED, minimum: int = 1) -> int:
        """An integer of at least `minimum`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UnsupportedModel(f"{self.file}: {key}={value!r} must be an integer of at least {minimum}")
        return value

    def optional_integer(self, key: str, default: int | None) -> int | None:
        """A positive integer; an explicit null is None, an absent key is `default`."""
        if key in self.raw and self.raw[key] is None:
            self.sources[key] = self.file
            return None
        return None if default is None and key not in self.raw else self.integer(key, default)

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A positive, finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UnsupportedModel(f"{self.file}: {key}={value!r} must be a positive number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise UnsupportedModel(f"{self.file}: {key}={value!r} must be true or false")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise UnsupportedModel(f"{self.file}: {key}={value!r} must be a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None where the key is absent or null."""
        return self.text(key) if self.raw.get(key) is not None else None

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of ids, as a tuple; absent or null is empty."""
        value = self.raw.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise UnsupportedModel(f"{self.file}: {key}={value!r} must be a token id or a list of them")
        self.sources[key] = self.file
        return tuple(i for i in ids if i >= 0)
