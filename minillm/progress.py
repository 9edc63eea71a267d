"""Progress bars on stderr, drawn by rich, and only where stderr is a terminal.

A bar that nobody asked for (loading, compiling) is status, as is a log record of level INFO: it shows where
the logger `minillm` does. So the library is silent unless logging is configured, and the command line,
which configures it, shows bars unless `--quiet` is given.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class Bar:
    """A bar that counts to `total`; silent when disabled or when stderr is no terminal.

    It appears with the first update, so that what fails before shows nothing. `enabled=None` enables it where
    the logger `minillm` lets INFO through.
    """

    def __init__(
        self, title: str, total: int = 0, enabled: bool | None = None, in_bytes: bool = False
    ) -> None:
        if enabled is None:
            enabled = logging.getLogger("minillm").isEnabledFor(logging.INFO)
        self._title, self._total = title, total
        amount = DownloadColumn(binary_units=True) if in_bytes else MofNCompleteColumn()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not (enabled and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task(title, total=total or None)

    def update(self, done: int, total: int | None = None) -> None:
        """Show `done` of the total."""
        self._bar.start()
        self._bar.update(self._task, completed=done, total=total or self._total or None)

    def __call__(self, done: int, total: int) -> None:
        self.update(done, total)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
