"""`minillm bench serving --workload NAME`: its options, its tables, and the exit code of a void run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from minillm.cli.options import load_llm
from minillm.cli.parser import Parser
from minillm.errors import UsageError
from minillm.progress import Bar
from minillm.tables import folding_table

VOID = 1  # exit code
LATENCIES = ("ttft", "tpot", "itl", "e2e", "queue")
SHARES = ("p50", "p90", "p95", "p99")
# The choices are named here too, so that the help does not wait for torch; a test compares them.
NAMES = ("poisson", "bursts", "trace", "chat", "rag", "agents", "tenants", "flood")
SETTINGS = ("rate", "duration", "seed", "cv", "trace")

MISSED = "missed"  # a percentile that is in the requests that failed

Row = tuple[str, str, str]


def add_workload_options(parser: Parser) -> None:
    """--workload, and the options that only it has."""
    group = parser.add_argument_group("serving --workload (open loop: requests come when they are due)")
    group.add_argument("--workload", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    group.add_argument("--rate", type=float, metavar="R", help="requests per second (4; trace: as recorded)")
    group.add_argument("--duration", type=float, metavar="S", help="seconds in which requests arrive (10)")
    group.add_argument("--seed", type=int, metavar="S", help="of arrivals, lengths and token ids (0)")
    group.add_argument(
        "--cv", type=float, metavar="C", help="bursts: coefficient of variation of the gaps (3)"
    )
    group.add_argument(
        "--trace", type=Path, metavar="FILE", help="trace: .csv in the Azure, .jsonl in the Mooncake format"
    )
    group.add_argument("--slo-ttft", type=float, metavar="S", help="goodput: seconds to the first token")
    group.add_argument("--slo-tpot", type=float, metavar="S", help="goodput: mean seconds per later token")
    group.add_argument(
        "--ablate",
        action="store_true",
        help="also without chunks, prefix cache and batching, and with drafts, in turns",
    )
    group.add_argument("--live", action="store_true", help="show the run in the terminal; it costs time")


def require_no_workload_options(args: argparse.Namespace) -> None:
    """Refuse the options of a workload where there is none.

    Raises:
        UsageError: one is given.
    """
    for name in ("workload", *SETTINGS, "slo_ttft", "slo_tpot", "ablate", "live"):
        if getattr(args, name) not in (None, False):
            needed = "the bench `serving`" if name == "workload" else "--workload"
            raise UsageError(
                f"--{name.replace('_', '-')} needs {needed}", "as `bench serving --workload chat`"
            )


def run_workload(args: argparse.Namespace) -> int:
    """Run the workload and print its report. The exit code is 1 if a run is void."""
    from minillm.bench.load.live import live_view
    from minillm.bench.load.plan import Settings
    from minillm.bench.load.runs import Bench, no_watch
    from minillm.bench.load.workloads import require_source
    from minillm.observe.slo import Slo

    given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    settings, slo = Settings(**given), Slo.of(ttft=args.slo_ttft, tpot=args.slo_tpot)
    require_source(args.workload, settings)
    is_live = args.live and not args.json and sys.stdout.isatty()
    bench = Bench(
        load=lambda **changes: load_llm(args, **changes),
        name=args.workload,
        settings=settings,
        slo=slo,
        repeats=args.runs,
        ablate=args.ablate,
        draft_model=args.draft_model,
        watch=live_view if is_live else no_watch,
    )
    with Bar("measuring", enabled=not args.json and not is_live) as bar:
        report = bench.run(bar) | {"live": is_live}
    if args.json:
        print(json.dumps(report))
    else:
        print_workload(report)
    return VOID if report["void"] else 0


def print_workload(report: dict[str, Any]) -> None:
    """Print the figures; if a run is void, the reasons come first and every title says so."""
    console, void = Console(), report["void"]
    console.width = max(console.width, 100)  # a wrapped row of figures is hard to read
    for reason in void:
        console.print(f"VOID: {reason}", style="bold red", highlight=False, markup=False)
    for line in _about(report):
        console.print(line, highlight=False, markup=False)
    mark, base = "VOID, do not use: " if void else "", report["variants"][0]["figures"]
    console.print(_latencies(mark + "latencies from the intended start", base, ""))
    if "watched.requests" in base:
        console.print(_latencies(mark + "the watched tenant", base, "watched."))
    table = folding_table("what", "median", "lowest to highest", title=mark + "figures", title_justify="left")
    for row in _figures(base):
        table.add_row(*row)
    console.print(table)
    if len(report["variants"]) > 1:
        console.print(_variants(mark + "in turns; ratios are of runs of one repeat", report["variants"]))


def _about(report: dict[str, Any]) -> Iterator[str]:
    work, slo = report["workload"], report["slo"]
    rate = "as recorded" if work["rate_per_s"] is None else f"{work['rate_per_s']:g} requests/s"
    yield f"{work['name']}: {work['what']} · {rate} for {work['duration_s']:g} s · seed {work['seed']}"
    if source := work["trace"]:
        yield f"times x {source['time_factor']:.4g}, lengths x {source['length_factor']:.4g}"
    yield f"{report['model']} · {report['dtype']} · {report['backend']} · {report['repeats']} repeats"
    limits = [f"{name.removesuffix('_s')} {_ms(limit)}" for name, limit in slo.items() if limit is not None]
    yield f"SLO: {', '.join(limits) or 'none: goodput counts all that did not fail'}"
    known = report["variants"][0]["figures"]
    unknown = [name for name in ("waiting", "steal") if f"machine.{name}" not in known]
    if unknown:
        yield f"this system does not tell: {', '.join(unknown)}"


def _latencies(title: str, figures: dict[str, Any], prefix: str) -> Table:
    table = folding_table("", *SHARES, title=title, title_justify="left")
    for name in LATENCIES:
        cells = [figures.get(f"{prefix}{name}.{share}") for share in SHARES]
        table.add_row(
            name, *("none" if cell is None else _shown(cell["median"], "{:,.1f} ms") for cell in cells)
        )
    return table


def _figures(figures: dict[str, Any]) -> Iterator[Row]:
    shown = {
        "requests": "{:,.0f}",
        "failed": "{:,.0f}",
        "cancelled": "{:,.0f}",
        "requests_per_s": "{:.2f}",
        "output_tokens_per_s": "{:,.1f}",
        "goodput_per_s": "{:.2f}",
        "slo_met": "{:.0%}",
        "hit_rate": "{:.0%}",
        "preemptions": "{:,.0f}",
        "fragmentation": "{:.1%}",
        "stall_tokens.p50": "{:,.0f}",
        "stall_tokens.p99": "{:,.0f}",
        "stall_tokens.most": "{:,.0f}",
        "lag_s.p99": "{:.5f}",
        "lag_s.most": "{:.5f}",
        "machine.waiting": "{:.1%}",
        "machine.steal": "{:.1%}",
        "machine.spin_change": "{:.1%}",
    }
    for name, form in shown.items():
        if found := figures.get(name):
            low, high = form.format(found["low"]), form.format(found["high"])
            yield name, form.format(found["median"]), f"{low} to {high}"


def _variants(title: str, variants: list[dict[str, Any]]) -> Table:
    columns = {
        "output_tokens_per_s": ("tok/s", "{:,.1f}", 1.0),
        "goodput_per_s": ("goodput/s", "{:.2f}", 1.0),
        "ttft.p50": ("ttft p50, ms", "{:,.1f}", 1e3),
        "ttft.p99": ("ttft p99, ms", "{:,.1f}", 1e3),
        "itl.p99": ("itl p99, ms", "{:,.1f}", 1e3),
        "watched.ttft.p99": ("watched: ttft p99, ms", "{:,.1f}", 1e3),
        "stall_tokens.most": ("longest stall", "{:,.0f}", 1.0),
    }
    columns = {name: how for name, how in columns.items() if name in variants[0]["figures"]}
    table = folding_table("", *(head for head, _, _ in columns.values()), title=title, title_justify="left")
    table.columns[0].no_wrap = True
    for variant in variants:
        cells = []
        for name, (_, form, scale) in columns.items():
            found, ratio = variant["figures"].get(name), variant["ratios"].get(name)
            text = "none" if found is None else _shown(found["median"], form, scale)
            cells.append(text if ratio is None else f"{text}\n{ratio:.2f} x")
        table.add_row(variant["name"], *cells)
    return table


def _shown(median: float | None, form: str, scale: float = 1e3) -> str:
    """A median; None: it is infinite, because too many requests never got there."""
    return MISSED if median is None else form.format(median * scale)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
