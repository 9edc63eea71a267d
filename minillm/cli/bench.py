"""`minillm bench`: tokens per second here, beside the machine's own limits."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from minillm.cli.options import add_engine_options, load_llm
from minillm.config import require_int
from minillm.errors import UsageError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure prefill and decode, or count what kernels move",
        description="Prefill and decode rates (batch 1 and 8), the share of the memory bandwidth measured "
        "in the same run, and peak memory. Medians with their spread: shared machines are noisy. "
        "`bench kernels --backend simt` counts instead the bytes that each attention kernel moves.",
    )
    parser.add_argument("what", nargs="?", choices=("engine", "kernels"), default="engine")
    parser.add_argument("--prompt-len", type=int, metavar="N", help="prompt tokens (512; kernels: 128)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens to decode")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="measurements of each figure")
    add_engine_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.what == "kernels":
        return _run_kernels(args)
    from minillm.bench import run_bench

    args.prompt_len = 512 if args.prompt_len is None else args.prompt_len
    for name in ("prompt_len", "tokens", "runs"):
        require_int("--" + name.replace("_", "-"), getattr(args, name), minimum=1)
    report = run_bench(load_llm(args), args.prompt_len, args.tokens, args.runs)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0


def _run_kernels(args: argparse.Namespace) -> int:
    if args.backend != "simt":
        raise UsageError("kernels are counted in the simulator only", "add --backend simt")
    from minillm.kernel_bench import run_kernel_bench
    from minillm.ops.contract import DTYPES

    dtype = DTYPES["float32" if args.dtype == "auto" else args.dtype]
    rows = run_kernel_bench(128 if args.prompt_len is None else args.prompt_len, dtype)
    if args.json:
        print(json.dumps(rows))
        return 0
    table = Table("rung", "rows x keys", "read", "written", "of it scores", "minimum", "ratio")
    table.title = "attention: bytes of global memory, counted; 2 heads of 64 over 1 kv head"
    for row in rows:
        columns = [f"{row[name]:,}" for name in _BYTES]
        shape = f"{row['q_len']} x {row['kv_len']}"
        table.add_row(row["rung"], shape, *columns, f"{row['times_minimum']:.1f}")
    Console().print(table)
    return 0


_BYTES = ("read_bytes", "written_bytes", "score_matrix_bytes", "minimum_bytes")


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
