"""The table of `minillm bench serving`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from minillm.tables import folding_table

Row = tuple[str, str, str]


def print_serving(report: dict[str, Any]) -> None:
    """Print every figure with the figure that it is compared with."""
    table = folding_table(
        "what", "figure", "compared with", title="the engine under load", title_justify="left"
    )
    for row in (*_load(report), *_sharing(report)):
        table.add_row(*row)
    Console().print(table)


def _load(report: dict[str, Any]) -> Iterator[Row]:
    batch, gap, over = report["batching"], report["gaps"], report["overhead"]
    yield (
        "64 requests of different lengths",
        f"{batch['continuous_tokens_per_s']:,.0f} tok/s",
        f"{batch['static_tokens_per_s']:,.0f} in padded batches: {batch['ratio']:.2f} x "
        f"({batch['ratio_low']:.2f} to {batch['ratio_high']:.2f})",
    )
    yield "", f"{batch['share_of_matmul_rate']:.0%} of the measured matmul rate", ""
    yield (
        "p99 gap, long prompt in chunks",
        _ms(gap["p99_chunked_s"]),
        f"one decode step and one chunk: {_ms(gap['bound_s'])}",
    )
    yield "p99 gap, long prompt whole", _ms(gap["p99_whole_s"]), ""
    yield (
        "planning and building, 32 rows",
        _ms(over["schedule_s"] + over["build_s"]),
        f"{over['share']:.1%} of a step of {_ms(over['step_s'])}",
    )


def _sharing(report: dict[str, Any]) -> Iterator[Row]:
    same = report["nothing_to_share"]
    spread = f"{same['ratio_low']:.3f} to {same['ratio_high']:.3f}"
    yield "cache, nothing to share", f"{same['ratio']:.3f} x the time", spread
    if "sharing" in report:
        s = report["sharing"]
        left_out = f"{s['tales_left_out']} of {s['tales_in_all']} tales are longer than the context"
        yield f"{s['requests']} questions, {s['tales']} tales", f"{s['hit_rate']:.0%} of tokens hit", left_out
        without = f"{s['prefill_tokens_uncached']:,} without: {s['fewer_prefill_tokens']:.1f} x"
        yield "  prefill tokens", f"{s['prefill_tokens']:,}", without
        without = f"{_ms(s['p50_ttft_uncached_s'])} without: {s['lower_p50_ttft']:.1f} x"
        yield "  p50 to the first token", _ms(s["p50_ttft_s"]), without
    for row in report.get("allocation", []):
        yield row["policy"], f"{row['waste']:.1%} wasted", f"{row['held_at_once']:.0f} requests at once"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
