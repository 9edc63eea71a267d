"""`minillm bench cache`: its options, and its tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from minillm.cli.parser import Parser
from minillm.cli.streams import say
from minillm.config import require_int, shown
from minillm.errors import UsageError
from minillm.tables import folding_table

if TYPE_CHECKING:
    from minillm.bench.parts import Progress

CACHE_BLOCKS = [1_000, 10_000, 30_000, 50_000, 100_000]
FLEETS = [10, 100, 1_000]
NODE_BLOCKS = 1_000
MOST_NODES = 10_000
CONVERSATIONS = 2_000  # of the trace that is made if none is given


def add_cache_options(parser: Parser) -> None:
    """The options of `minillm bench cache`."""
    group = parser.add_argument_group("cache")
    group.add_argument(
        "--cache-blocks", type=int, nargs="+", default=CACHE_BLOCKS, metavar="N", help="sizes of one cache"
    )
    group.add_argument(
        "--nodes", type=int, nargs="+", default=FLEETS, metavar="N", help="replicas of a fleet"
    )
    group.add_argument(
        "--node-blocks", type=int, default=NODE_BLOCKS, metavar="N", help="size of each replica's cache"
    )


def measure_cache(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Simulate the trace that the command line names, or one that is made here.

    Raises:
        UsageError: an option is out of range, or more than one trace is given.
        MinillmError: the trace cannot be read, or is damaged.
    """
    from minillm.bench.cache_sim.generate import conversations
    from minillm.bench.cache_sim.report import run_cache
    from minillm.bench.cache_sim.trace import read_trace

    if args.model is not None or len(args.words) > 1:
        given = " and ".join(shown(name) for name in [*args.words, args.model] if name is not None)
        raise UsageError(
            f"the cache bench needs one trace and no model, not {given}", "minillm bench cache TRACE"
        )
    require_int("--node-blocks", args.node_blocks, minimum=1)
    for blocks in args.cache_blocks:
        require_int("--cache-blocks", blocks, minimum=1)
    for nodes in args.nodes:
        require_int("--nodes", nodes, minimum=1, maximum=MOST_NODES)
    if args.words:
        name, trace = args.words[0], read_trace(Path(args.words[0]))
    else:
        name, trace = "conversations made here", conversations(CONVERSATIONS)
        say("minillm: no TRACE: conversations are made from a seed")
    report = run_cache(trace, args.cache_blocks, args.nodes, args.node_blocks, progress)
    return {"name": name, **report}


def print_cache(report: dict[str, Any]) -> None:
    """Print the hit rates of one cache, then those of many."""
    trace, console = report["trace"], Console()
    console.print(
        f"{trace['requests']:,} requests in {trace['seconds']:,.0f} s, {trace['blocks']:,} prompt blocks, "
        f"{trace['distinct_blocks']:,} of them distinct"
    )
    console.print(_caches(report))
    console.print(_fleets(report))
    console.print(
        "hits: hit blocks, divided by all prompt blocks. load: the most requests in flight on one node, "
        "divided by those of an even spread. work: the most blocks computed on one node, divided by the mean."
    )


def _caches(report: dict[str, Any]) -> Any:
    policies = list(dict.fromkeys(row["policy"] for row in report["caches"]))
    table = folding_table(
        "blocks", *(f"hits, {name}" for name in policies), title="one cache", title_justify="left"
    )
    rates = {(row["blocks"], row["policy"]): row["hit_rate"] for row in report["caches"]}
    for blocks in dict.fromkeys(row["blocks"] for row in report["caches"]):
        table.add_row(f"{blocks:,}", *(f"{rates[blocks, policy]:.4f}" for policy in policies))
    table.add_row("unbounded", *(f"{report['unbounded_hit_rate']:.4f}" for _ in policies))
    return table


def _fleets(report: dict[str, Any]) -> Any:
    title = f"replicas, each with an LRU of {report['node_blocks']:,} blocks"
    columns = ("nodes", "router", "hits", "load", "work")
    table = folding_table(*columns, title=title, title_justify="left")
    for row in report["fleets"]:
        figures = f"{row['hit_rate']:.4f}", f"{row['load_imbalance']:.2f}", f"{row['work_imbalance']:.2f}"
        table.add_row(f"{row['nodes']:,}", row["router"], *figures)
    return table
