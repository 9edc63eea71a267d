"""Progress bars on stderr, drawn by rich; shown only if stderr is a terminal.

The bars for loading and compiling are status messages, like log records of level INFO: they are shown only if
the logger `minillm` lets INFO through. So the library is silent unless the program configures logging. The
command line configures it, so it shows bars unless `--quiet` is given.
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
    """A bar that counts to `total`. It is not shown if it is disabled or stderr is not a terminal.

    It appears at the first update, so nothing is shown if the work fails before that. `enabled=None` shows it
    only if the logger `minillm` lets INFO through.
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
        """Show that `done` of `total` units are done."""
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
