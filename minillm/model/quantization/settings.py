"""A `quantization_config`, or a part of it, as values of the right kind.

A key that is ignored although it changes what the numbers mean gives fluent, wrong text. So every key is read,
or named as harmless, or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from minillm.config import shown
from minillm.errors import UnsupportedModel

_ABSENT = (None, False, [], {}, "")


class Settings:
    """Reads the keys of `values`; `where` names it in errors."""

    def __init__(
        self, where: str, values: object, known: Collection[str], only_absent: Mapping[str, str]
    ) -> None:
        """Refuse keys that are not in `known`. `only_absent`: keys that must say nothing, and why.

        Raises:
            UnsupportedModel: no object of JSON, an unknown key, or a key that asks for what is missing here.
        """
        if not isinstance(values, dict):
            raise UnsupportedModel(f"{where} is {shown(values)}", "it must be an object")
        self.where, self._values = where, values
        for key, reason in only_absent.items():
            if self.given(key):
                raise UnsupportedModel(
                    f"{where} has {key} = {shown(values[key])}", f"not supported: {reason}"
                )
        for key in values:
            if key not in known and key not in only_absent:
                raise UnsupportedModel(
                    f"{where} has the unknown key {shown(key)}", "it may change the weights"
                )

    def given(self, key: str) -> bool:
        """Whether a key says anything."""
        return not any(self._values.get(key) is x or self._values.get(key) == x for x in _ABSENT)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where it is absent or null."""
        value = self._values.get(key)
        return default if value is None else value

    def choice(self, key: str, choices: Collection[Any], default: Any = None) -> Any:
        """A value out of `choices`.

        Raises:
            UnsupportedModel: it is another one.
        """
        value = self.get(key, default)
        if not any(value == c and type(value) is type(c) for c in choices):
            self.refuse(key, value, f"supported: {', '.join(map(str, choices))}")
        return value

    def integer(self, key: str, default: int) -> int:
        """An integer.

        Raises:
            UnsupportedModel: it is none.
        """
        value = self.get(key, default)
        if type(value) is not int:
            self.refuse(key, value, "it must be an integer")
        return value

    def names(self, key: str) -> list[str]:
        """A list of strings, or nothing.

        Raises:
            UnsupportedModel: it is something else.
        """
        value = self.get(key, [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self.refuse(key, value, "it must be a list of names")
        return value

    def refuse(self, key: str, value: object, hint: str) -> NoReturn:
        """Refuse the value of a key.

        Raises:
            UnsupportedModel: always.
        """
        raise UnsupportedModel(f"{self.where} has {key} = {shown(value)}", hint)
