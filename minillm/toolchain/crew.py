"""Processes and a folder that do not outlive the work they belong to.

A build runs several compilers, a download runs pip, and each of them starts processes of its own. They form
one process group, which ends with the work, however the work ends:

    an error, Ctrl-C             `Crew` kills the group
    SIGTERM, SIGKILL, a crash    nothing of this process runs any more. The first process of the group is a
                                 shell that reads from a pipe. The pipe closes with this process. The shell
                                 then kills the group and removes the unfinished folder

A power failure leaves the folder; whoever makes it again removes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

# Reads until its input is closed. The group is asked first: gcc then removes its temporary files.
_WATCH = 'read -r line; trap "" TERM; kill -TERM 0; sleep 0.2; rm -rf -- "$1"; kill -KILL 0'


class Crew:
    """The processes of one piece of work, as a context: none of them is left when it ends.

    Args:
        scratch: the folder of unfinished files. It is removed only if this process is killed.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def __enter__(self) -> Crew:
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(self._scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._watch.communicate()

    @property
    def group(self) -> int:
        """The process group to start processes in: `process_group=crew.group`."""
        return self._watch.pid

    def kill(self) -> None:
        """End every process of the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
