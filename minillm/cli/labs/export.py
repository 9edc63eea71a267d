"""`minillm labs export N DIR`: a package without the solutions, or an autograder for Gradescope."""

from __future__ import annotations

import argparse
from typing import Any


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `export`."""
