"""The table of `minillm bench growth`."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from minillm.tables import folding_table

CURVES = ("context", "batch", "queue_add", "queue_step", "cache", "requests")
ALONG = {
    "context": "tokens of context",
    "batch": "running sequences",
    "queue_add": "waiting requests",
    "queue_step": "waiting requests",
    "cache": "cached blocks",
    "requests": "requests served",
}


def print_growth(report: dict[str, Any]) -> None:
    """Print each curve's points and its slope: 0 is flat, 1 is linear."""
    table = folding_table(
        "along", "measured", "points", "slope", title="how cost grows", title_justify="left"
    )
    for name in CURVES:
        curve = report[name]
        points = ", ".join(f"{x:,}: {_shown(curve['what'], y)}" for x, y in curve["points"])
        table.add_row(ALONG[name], curve["what"].split(",")[0], points, f"{curve['slope']:.2f}")
    Console().print(table)


def _shown(what: str, value: float) -> str:
    if what.endswith("bytes"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value * 1e3:,.2f} ms" if value >= 1e-3 else f"{value * 1e6:,.1f} µs"
