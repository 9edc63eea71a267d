"""The parts of a long bench, run one after the other, with a report of how many are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minillm.llm import LLM

Load = Callable[..., LLM]  # an LLM with options of `LLM` that are changed
Progress = Callable[[int, int], None]  # (number of parts that are done, number of all parts)


def no_progress(_done: int, _total: int) -> None:
    """The progress of a caller that shows none."""


def run_parts(parts: Mapping[str, Callable[[], Any]], progress: Progress) -> dict[str, Any]:
    """The result of every part under its name."""
    results: dict[str, Any] = {}
    for name, part in parts.items():
        progress(len(results), len(parts))
        results[name] = part()
    return results
