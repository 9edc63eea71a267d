"""The tables of `minillm bench speculation`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

Figure = dict[str, Any]


def print_speculation(report: dict[str, Any]) -> None:
    """Print every figure with the figure that it is compared with, then a summary in words."""
    console = Console()
    console.width = max(console.width, 100)  # a wrapped row of figures is hard to read
    for table in (_pair, _acceptance, _batches, _ngram, _floor):
        console.print(table(report))
    for line in _words(report):
        console.print(line, highlight=False)


def _pair(report: dict[str, Any]) -> Table:
    table = _table(
        f"{report['model']}, drafts by {report['draft_model']} · {report['dtype']} · {report['backend']}"
        " · one sequence, greedy",
        [
            "K",
            "speed-up",
            "low to high",
            "expected",
            "tokens per step",
            "cost",
            "draft",
            "verify",
            "rest",
        ],
    )
    for row in report["pair"]["rows"]:
        table.add_row(str(row["k"]), *_speed(row["speed_up"]), *_expected(row), *_shares(row))
    table.add_row("adaptive", *_speed(report["pair"]["adaptive"]))
    return table


def _acceptance(report: dict[str, Any]) -> Table:
    table = _table(
        "scripted drafts with a given rate of right tokens · 5 tokens",
        ["right", "speed-up", "low to high", "expected", "tokens", "cost"],
    )
    for row in report["acceptance"]:
        table.add_row(f"{row['acceptance']:.0%}", *_speed(row["speed_up"]), *_expected(row))
    return table


def _batches(report: dict[str, Any]) -> Table:
    found = report["batches"]
    table = _table(
        "larger batches",
        [
            "batch",
            f"always {found['num_draft_tokens']}",
            "low to high",
            "adaptive",
            "low to high",
        ],
    )
    for row in found["rows"]:
        table.add_row(str(row["batch"]), *_speed(row["fixed"]), *_speed(row["adaptive"]))
    return table


def _ngram(report: dict[str, Any]) -> Table:
    table = _table(
        "prompt lookup (ngram) · up to 8 tokens",
        ["text", "speed-up", "low to high", "drafted", "accepted", "tokens per drafting step"],
    )
    for row in report["ngram"]:
        table.add_row(
            row["what"],
            *_speed(row["speed_up"]),
            str(row["drafted"]),
            f"{row['acceptance']:.0%}",
            f"{row['tokens_per_step']:.2f}",
        )
    return table


def _floor(report: dict[str, Any]) -> Table:
    table = _table("one run of the target", ["rows", "ms", "relative to one row"])
    for row in report["floor"]["rows"]:
        table.add_row(str(row["rows"]), f"{row['seconds'] * 1e3:.3f}", f"{row['over_one_row']:.2f} x")
    return table


def _words(report: dict[str, Any]) -> list[str]:
    pair, floor, costs = report["pair"], report["floor"], report["costs"]
    read = floor["read_weights_s"]
    places = ", ".join(f"{share:.0%}" for share in pair["acceptance_by_position"])
    lines = [
        f"{pair['num_draft_tokens']} draft tokens: {pair['acceptance']:.0%} accepted, by position {places}; "
        f"one draft token takes {_us(pair['level_s'])}, {pair['level_over_step']:.2f} of a plain step",
        f"a plain step takes {_us(pair['plain_step_s'])}; tokens are per step, cost is in plain steps",
        f"up to {floor['nearly_free_rows']} rows are nearly free"
        + (
            f"; reading the weights once from main memory takes {_us(read)}, less from a cache"
            if read
            else ""
        ),
        _loses(report["batches"]),
        f"outside both models: {_us(costs['outside_s'])} per step ({costs['outside_share']:.1%}), "
        f"{_us(costs['outside_per_token_s'])} per token; without drafts {_us(costs['plain_outside_s'])} per "
        f"step ({costs['plain_outside_share']:.1%}): drafts add {costs['added_share']:.1%}",
    ]
    for row in report["switched_off"]:
        lines.append(f"adaptive, drafter {row['drafter']}: {_slower(row['speed_up'])}")
    if not all(figure["same_answers"] for figure in _figures(report)):
        lines.append("some answers differ with drafts: this is rounding, or, with native kernels, a bug")
    return lines


def _loses(found: dict[str, Any]) -> str:
    def when(name: str) -> str:
        losing = [str(row["batch"]) for row in found["rows"] if row[name]["median"] < 1]
        if batch := found[f"{name}_loses_from"]:
            return f"slower from batch {batch} on"
        return f"slower at batch {', '.join(losing)}" if losing else "never slower at these batches"

    return f"always {found['num_draft_tokens']} drafts: {when('fixed')}; adaptive: {when('adaptive')}"


def _figures(report: dict[str, Any]) -> list[Figure]:
    rows = [*report["pair"]["rows"], *report["acceptance"], *report["ngram"], *report["switched_off"]]
    batches = [row[name] for row in report["batches"]["rows"] for name in ("fixed", "adaptive")]
    return [report["pair"]["adaptive"], *(row["speed_up"] for row in rows), *batches]


def _speed(figure: Figure) -> tuple[str, str]:
    return f"{figure['median']:.2f} x", f"{figure['low']:.2f} to {figure['high']:.2f}"


def _expected(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"{row['expected_speed_up']:.2f} x", f"{row['tokens_per_step']:.2f}", f"{row['cost']:.2f}"


def _shares(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"{row['draft_share']:.0%}", f"{row['verify_share']:.0%}", f"{row['bookkeeping_share']:.0%}"


def _slower(figure: Figure) -> str:
    times = [1 / figure[name] - 1 for name in ("median", "high", "low")]
    return f"{times[0]:+.1%} time ({times[1]:+.1%} to {times[2]:+.1%})"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table
