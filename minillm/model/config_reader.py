"""Typed reads from a config.json, each remembering where the value came from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from minillm.config import shown
from minillm.errors import UnsupportedModel

LARGEST_INTEGER = (1 << 63) - 1
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-20, 1e20
_REQUIRED = object()


class ConfigReader:
    """A raw config with checked access; `sources` says which values were given and which default.

    Args:
        raw: by the common names of keys.
        defaults: values of keys that are absent. An explicit null is absent for texts and numbers only.
        spelled: the file's own names of keys, where they are others, for messages.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        file: str = "config.json",
        defaults: Mapping[str, Any] = MappingProxyType({}),
        spelled: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.raw, self.file = {**defaults, **raw}, file
        self._spelled, self._defaults = spelled, defaults
        self._given = raw.keys()
        self.sources: dict[str, str] = {}

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is not None:
            self.sources[key] = self.file if key in self._given else "default"
            return value
        if default is _REQUIRED:
            raise UnsupportedModel(
                f"{self.file} has no {self.name(key)}", "the model cannot be built without it"
            )
        self.sources[key] = "default"
        return default

    def name(self, key: str) -> str:
        """What the file calls the key, for messages."""
        return self._spelled.get(key, key)

    def is_null(self, key: str) -> bool:
        """Whether the config has the key, with the value null."""
        return key in self._given and self.raw[key] is None

    def integer(
        self, key: str, default: Any = _REQUIRED, minimum: int = 1, maximum: int = LARGEST_INTEGER
    ) -> int:
        """An integer from `minimum` to `maximum`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise UnsupportedModel(
                f"{self.file}: {self.name(key)}={shown(value)} must be an integer from {minimum} to {maximum}"
            )
        return value

    def optional_integer(self, key: str, default: int | None, maximum: int = LARGEST_INTEGER) -> int | None:
        """A positive integer; null, in the file or as the family's default, is None; else `default`."""
        if key in self.raw and self.raw[key] is None:
            self.sources[key] = self.file if key in self._given else "default"
            return None
        return (
            None if default is None and key not in self.raw else self.integer(key, default, maximum=maximum)
        )

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A positive number that arithmetic can use: products of a few of them are finite, too."""
        value = self._value(key, self._defaults.get(key, default))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not SMALLEST_NUMBER <= value <= LARGEST_NUMBER:
            raise UnsupportedModel(
                f"{self.file}: {self.name(key)}={shown(value)} must be a number "
                f"from {SMALLEST_NUMBER:g} to {LARGEST_NUMBER:g}"
            )
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A positive number; None where the key is absent, null, or 0, which published configs write."""
        value = self.raw.get(key)
        is_zero = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
        return None if value is None or is_zero else self.number(key)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` positive numbers."""
        values = self._value(key, _REQUIRED)
        if not isinstance(values, list) or len(values) != count:
            raise UnsupportedModel(
                f"{self.file}: {self.name(key)}={shown(values)} must be a list of {count} numbers"
            )
        one_by_one = ConfigReader({key: None}, self.file)
        return tuple(one_by_one.number(key, value) for value in values)

    def nullable_number(self, key: str) -> float | None:
        """A positive number; None where the key is absent or null."""
        return None if self.raw.get(key) is None else self.number(key)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise UnsupportedModel(f"{self.file}: {self.name(key)}={shown(value)} must be true or false")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string."""
        value = self._value(key, self._defaults.get(key, default))
        if not isinstance(value, str):
            raise UnsupportedModel(f"{self.file}: {self.name(key)}={shown(value)} must be a string")
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
        if not all(type(i) is int and i <= LARGEST_INTEGER for i in ids):
            raise UnsupportedModel(
                f"{self.file}: {self.name(key)}={shown(value)} must be a token id or a list of them"
            )
        self.sources[key] = self.file
        return tuple(i for i in ids if i >= 0)
