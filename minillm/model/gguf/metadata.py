"""Typed reads from a GGUF file's metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minillm.config import shown
from minillm.errors import UnsupportedModel

_REQUIRED: Any = object()


@dataclass(frozen=True)
class Metadata:
    """The metadata of the file `name`, with checked access.

    Raises:
        UnsupportedModel: from every method, where a key is missing or of another type.
    """

    name: str
    values: Mapping[str, Any]

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string."""
        return str(self._typed(key, str, default))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return bool(self._typed(key, bool, default))

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        """An integer; a list of equal integers, one for each layer, counts as one."""
        value = self.values.get(key, default)
        if isinstance(value, list) and value:
            if any(each != value[0] for each in value):
                raise UnsupportedModel(
                    f"{self.name}: {key} differs between layers: {shown(value)}",
                    "all layers must be of one size",
                )
            value = value[0]
        return int(self._required(key, value, int))

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number."""
        value = float(self._required(key, self.values.get(key, default), int | float))
        if not math.isfinite(value):
            raise UnsupportedModel(f"{self.name}: {key} is not a finite number")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of strings."""
        value: list[str] = self._typed(key, list, _REQUIRED)
        if value and not isinstance(value[0], str):
            raise UnsupportedModel(f"{self.name}: {key} is not a list of texts")
        return value

    def numbers(self, key: str, count: int, default: float | None) -> list[float]:
        """`count` numbers, all `default` where the key is absent; None: it must be there."""
        if key not in self.values and default is not None:
            return [default] * count
        value: list[float] = self._typed(key, list, _REQUIRED)
        if len(value) != count or not all(type(n) in (int, float) for n in value):
            raise UnsupportedModel(f"{self.name}: {key} must hold {count} numbers, one for each token")
        return value

    def integers(self, key: str, count: int, default: int) -> list[int]:
        """`count` integers, as `numbers`."""
        value = self.numbers(key, count, default)
        if not all(type(n) is int for n in value):
            raise UnsupportedModel(f"{self.name}: {key} must hold integers")
        return [int(n) for n in value]

    def token_id(self, key: str, count: int) -> int | None:
        """An id below `count`; None where the key is absent, or names no token, which published files do."""
        value = self.values.get(key)
        return value if type(value) is int and 0 <= value < count else None

    def _typed(self, key: str, kind: Any, default: Any) -> Any:
        return self._required(key, self.values.get(key, default), kind)

    def _required(self, key: str, value: Any, kind: Any) -> Any:
        if value is _REQUIRED:
            raise UnsupportedModel(f"{self.name} has no {key}", "the model cannot be built without it")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UnsupportedModel(f"{self.name}: {key}={shown(value)} is of another type than it must be")
        return value
