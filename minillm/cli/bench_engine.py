"""`minillm bench engine`: prefill and decode, alone, quantised beside plain, and beside another engine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from minillm.cli.options import load_llm
from minillm.cli.parser import Parser
from minillm.cli.streams import say

if TYPE_CHECKING:
    from rich.table import Table

    from minillm.bench.parts import Progress

PEERS = ("transformers", "llama.cpp")


def add_peer_option(parser: Parser) -> None:
    """--peer."""
    parser.add_argument(
        "--peer",
        choices=PEERS,
        help="also measure this engine, in turns with minillm: on the same weights, llama.cpp on the "
        "GGUF file that they were made of",
    )


def measure_engine(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """All figures of the engine; each comparison is measured in turns.

    Raises:
        MinillmError: the model cannot be loaded, or the peer is not there.
    """
    from minillm.bench.engine import compare, run_bench
    from minillm.bench.peers import require_peer, run_peer

    llm = load_llm(args, prefix_caching=False)  # every run measures the same prompts again
    if args.peer:
        require_peer(args.peer, llm.engine.model)
    report = run_bench(llm, args.prompt_len, args.tokens, args.runs, args.batch, progress)
    engines = {args.quantization or report["dtype"]: llm}
    if args.quantization:
        plain = load_llm(args, prefix_caching=False, quantization=None)
        report["plain"] = compare(plain, llm, args.prompt_len, args.tokens, args.runs, args.batch)
        engines[report["plain"]["dtype"]] = plain
    if args.peer:
        report["peer"] = run_peer(engines, args.peer, args.prompt_len, args.tokens, args.runs, args.batch)
        if report["peer"] is None:
            say(f"minillm: {args.peer} is not installed: no comparison")
    return report


def print_engine(report: dict[str, Any]) -> None:
    """Print the figures, then those of the comparisons, then what belongs to them."""
    from rich.console import Console

    from minillm.config.sizes import format_bytes
    from minillm.tables import figures_table

    console, bandwidth = Console(), report["read_bandwidth"]
    console.width = max(console.width, 100)  # a wrapped row of figures is hard to read
    table = figures_table(
        f"{report['model']} · {report['dtype']} · {report['backend']}",
        ["what", "tok/s", "lowest to highest", "bytes read/s", "share of bandwidth"],
    )
    for row in report["rows"]:
        rate = row["tokens_per_s"]
        share = row.get("share_of_bandwidth")
        table.add_row(
            row["what"],
            f"{rate['median']:,.1f}",
            f"{rate['low']:,.1f} to {rate['high']:,.1f}",
            f"{row['bytes_per_s'] / 1e9:.2f} GB" if "bytes_per_s" in row else "",
            f"{share['median']:.0%} ({share['low']:.0%} to {share['high']:.0%})" if share else "",
        )
    console.print(table)
    if "plain" in report:
        console.print(_plain_table(report))
    if report.get("peer"):
        console.print(_peer_table(report["peer"]))
    if bandwidth:
        console.print(f"read bandwidth measured in this run: {bandwidth['median'] / 1e9:.1f} GB/s")
    machine, weights = report["machine"], report["weights"]
    console.print(f"a step reads {format_bytes(weights['bytes_per_step'])} of weights")
    if weights["kept_narrow"]:
        share = f"{weights['kept_narrow']} of {weights['matrices']}"
        console.print(f"{share} matrices fit in bfloat16 and are stored so: the same numbers, half the bytes")
    console.print(f"peak memory {format_bytes(report['peak_memory_bytes'])} · {machine['system']}")
    console.print(f"torch {machine['torch']}, {machine['threads']} threads")


def _plain_table(report: dict[str, Any]) -> Table:
    plain = report["plain"]
    title = (
        f"{report['quantization']} in turns with {plain['dtype']} ({plain['bytes_per_step']:,} bytes a step)"
    )
    return _ratio_table(title, report["quantization"], plain["dtype"], plain["rows"])


def _peer_table(peer: dict[str, Any]) -> Table:
    title = f"in turns with {peer['name']} {peer['version']}"
    if "model" in peer:
        title += f", {peer['model']} ({peer['bytes']:,} bytes)"
    rows = [row | {"what": f"{row['what']}, {row['engine']}"} for row in peer["rows"]]
    return _ratio_table(title, "minillm", peer["name"], rows)


def _ratio_table(title: str, own: str, other: str, rows: list[dict[str, Any]]) -> Table:
    from minillm.tables import figures_table

    table = figures_table(title, ["what", f"{own} tok/s", f"{other} tok/s", "ratio", "lowest to highest"])
    for row in rows:
        ratio = row["ratio"]
        table.add_row(
            row["what"],
            f"{row['tokens_per_s']:,.1f}",
            f"{row['peer_tokens_per_s']:,.1f}",
            f"{ratio['median']:.2f}",
            f"{ratio['low']:.2f} to {ratio['high']:.2f}",
        )
    return table
