"""Parts and ops that raise at a chosen call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Broken(Exception):
    """The exception that a part raises."""

    def __init__(self, code: int, *, extra: str) -> None:
        super().__init__(code)
        self.extra = extra


class Stopped(KeyboardInterrupt):
    """An interrupt: it asks the program to stop."""


class Panic(BaseException):
    """A panic of a library written in Rust: neither an Exception nor an interrupt."""


class Fuse:
    """Raises at call number `at` (with `for_ever` also at later ones), before or after the work."""

    def __init__(self, at: int | None, error: BaseException, behind: bool = False, for_ever: bool = False):
        self.at, self.error, self.behind, self.for_ever = at, error, behind, for_ever
        self.calls, self.blown = 0, 0
        self.blew: Callable[[], None] = lambda: None  # called before it raises

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def fused(*args: Any, **named: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            is_due = self.at is not None and (number == self.at or (self.for_ever and number > self.at))
            if is_due and not self.behind:
                self._blow()
            result = work(*args, **named)
            if is_due:
                self._blow()
            return result

        return fused

    def _blow(self) -> None:
        self.blown += 1
        self.blew()
        raise self.error

    def methods(self, cls: type, *names: str) -> type:
        """A subclass whose methods and properties with these names are wrapped in `fuse`."""
        guarded: dict[str, Any] = {}
        for name in names:
            own = cls.__dict__[name]
            is_property = isinstance(own, property)
            guarded[name] = property(self.around(own.fget)) if is_property else self.around(own)
        return type(f"Fused{cls.__name__}", (cls,), guarded)
