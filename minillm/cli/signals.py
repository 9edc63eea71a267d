"""SIGTERM for a command that must clean up: `timeout`, a batch system or a shutdown ends it, as Ctrl-C does.

without    the process ends at once; its child processes go on, and write into a closed pipe
with       KeyboardInterrupt's path: children are ended, results are written; one line, exit code 143
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise `Terminated` at the first SIGTERM inside the `with`; later ones do not disturb the clean-up."""

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
