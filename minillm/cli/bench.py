"""`minillm bench`: tokens per second here, beside the machine's own limits."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from minillm.cli.options import add_engine_options, load_llm
from minillm.config import require_int


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure prefill and decode",
        description="Prefill and decode rates (batch 1 and 8), the share of the memory bandwidth measured "
        "in the same run, and peak memory. Medians with their spread: shared machines are noisy.",
    )
    parser.add_argument("--prompt-len", type=int, default=512, metavar="N", help="prompt tokens to prefill")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens to decode")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="measurements of each figure")
    add_engine_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from minillm.bench import run_bench

    for name in ("prompt_len", "tokens", "runs"):
        require_int("--" + name.replace("_", "-"), getattr(args, name), minimum=1)
    report = run_bench(load_llm(args), args.prompt_len, args.tokens, args.runs)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0


def _print(report: dict[str, Any]) -> None:
    from minillm.memory.budget import format_bytes

    console, bandwidth = Console(), report["read_bandwidth"]
    table = Table("what", "tok/s", "lowest to highest", "bytes read/s", "share of bandwidth")
    table.title = f"{report['model']} · {report['dtype']} · {report['backend']}"
    for row in report["rows"]:
        rate = row["tokens_per_s"]
        share = row.get("share_of_bandwidth")
        table.add_row(
            row["what"],
            f"{rate['median']:,.1f}",
            f"{rate['low']:,.1f} to {rate['high']:,.1f}",
            f"{row['bytes_per_s'] / 1e9:.2f} GB" if "bytes_per_s" in row else "",
            f"{share:.0%}" if share else "",
        )
    console.print(table)
    if bandwidth:
        console.print(f"read bandwidth measured in this run: {bandwidth['median'] / 1e9:.1f} GB/s")
    machine = report["machine"]
    console.print(f"peak memory {format_bytes(report['peak_memory_bytes'])} · {machine['system']}")
    console.print(f"torch {machine['torch']}, {machine['threads']} threads")
