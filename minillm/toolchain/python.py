"""Another Python process that runs a module of minillm, whatever lies in the current folder.

    python -m      searches the current folder first: somebody's json.py or numpy.py there is imported
    python -P -m   does not; an empty entry of PYTHONPATH would bring it back, so there is none

The process has this minillm, and this interpreter's -O.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from minillm.toolchain.sources import PACKAGE


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module."""
    optimize = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    return [sys.executable, "-P", *optimize, "-m", module, *arguments]


def module_environment(folders: Iterable[str] | None = None) -> dict[str, str]:
    """Its variables. Modules are searched in `folders` after minillm's own; None: in those of PYTHONPATH."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep) if folders is None else folders
    path = dict.fromkeys([str(PACKAGE.parent), *filter(None, given)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
