"""`minillm bench`: tokens per second on this machine, compared with its limits and with another engine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.cli.bench_cache import add_cache_options, measure_cache, print_cache
from minillm.cli.bench_growth import print_growth
from minillm.cli.bench_serving import print_serving
from minillm.cli.bench_speculation import print_speculation
from minillm.cli.bench_workload import add_workload_options, require_no_workload_options, run_workload
from minillm.cli.options import add_engine_options, add_record_option, load_llm, model_of, pulled_model
from minillm.cli.parser import Parser
from minillm.cli.streams import say
from minillm.config import require_int
from minillm.errors import UsageError
from minillm.progress import Bar

if TYPE_CHECKING:
    from rich.table import Table

    from minillm import LLM
    from minillm.bench.parts import Progress

PEERS = ("transformers",)
KINDS = ("engine", "kernels", "serving", "speculation", "growth", "cache")


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure prefill and decode",
        description="Prefill and decode rates, the share of the memory bandwidth (measured in the same run), "
        "and peak memory. With `kernels`: each op, compared with the machine's roofline and the reference "
        "(`--backend simt`: the bytes that each attention kernel moves, and its predicted time on a GPU). "
        "With `serving`: the gain from batching, chunks and sharing; with `--workload`, users on the engine: "
        "latencies from the intended start, and exit code 1 where the run was disturbed. With `speculation`: "
        "the gain and the cost of drafts. With `growth`: how cost grows with context, batch, queue and "
        "cache. With `cache`: the blocks that a KV cache would find on a recorded TRACE, without a model. "
        "All measured figures are medians with lowest and highest value, because shared machines are noisy. "
        "Without a model the engine is measured with smollm2 where it was pulled, all else with the model "
        "that ships.",
        usage="minillm bench [engine|kernels|serving|speculation|growth] [MODEL] [options]\n"
        "       minillm bench cache [TRACE] [options]",
    )
    parser.add_argument(
        "--prompt-len", type=int, metavar="N", help="prompt tokens to prefill (512; simt: 128)"
    )
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens to decode")
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        metavar="N",
        help="sequences in a batch (default: 1 8; speculation: 1 to 32)",
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="measurements of each figure")
    parser.add_argument("--data", type=Path, help="serving: folder with fairytaleqa/ and traces/")
    parser.add_argument(
        "--draft-model",
        default="auto",
        metavar="PATH",
        help="speculation: folder or hub id (auto: the draft model that ships)",
    )
    parser.add_argument(
        "--peer", choices=PEERS, help="also measure this engine, in turns with minillm, on the same weights"
    )
    parser.add_argument(
        "--chip", default="h100", metavar="NAME", help="kernels, simt: predict for t4, a100 or h100"
    )
    add_workload_options(parser)
    add_cache_options(parser)
    add_engine_options(parser)
    add_record_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    args.what = args.words.pop(0) if args.words[:1] and args.words[0] in KINDS else "engine"
    if args.what == "engine" and model_of(args) is None:
        args.model = pulled_model()
    counted = args.what == "kernels" and args.backend == "simt"
    if args.prompt_len is None:
        args.prompt_len = 128 if counted else 512
    if args.batch is None:
        args.batch = [1, 2, 4, 8, 16, 32] if args.what == "speculation" else [1, 8]
    if args.what == "kernels" and args.record is not None:
        raise UsageError("kernels run without an engine: there is nothing to record", "leave --record out")
    for name in ("prompt_len", "tokens", "runs"):
        require_int("--" + name.replace("_", "-"), getattr(args, name), minimum=1)
    for batch in args.batch:
        require_int("--batch", batch, minimum=1)
    if args.what == "serving" and args.workload:
        return run_workload(args)
    require_no_workload_options(args)
    measure, show = {
        "engine": (_engine, _print),
        "kernels": (_traffic, _print_traffic) if counted else (_kernels, _print_kernels),
        "serving": (_serving, print_serving),
        "speculation": (_speculation, print_speculation),
        "growth": (_growth, print_growth),
        "cache": (measure_cache, print_cache),
    }[args.what]
    with Bar("measuring", enabled=not args.json) as bar:
        report = measure(args, bar)
    if args.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


def _engine(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from minillm.bench.engine import compare, run_bench
    from minillm.bench.peer import run_peer

    llm = load_llm(args, prefix_caching=False)  # every run measures the same prompts again
    report = run_bench(llm, args.prompt_len, args.tokens, args.runs, args.batch, progress)
    if args.quantization:
        plain = load_llm(args, prefix_caching=False, quantization=None)
        report["plain"] = compare(plain, llm, args.prompt_len, args.tokens, args.runs, args.batch)
    if args.peer:
        report["peer"] = run_peer(llm, args.peer, args.prompt_len, args.tokens, args.runs, args.batch)
        if report["peer"] is None:
            say(f"minillm: {args.peer} is not installed: no comparison")
    return report


def _kernels(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from minillm.bench.kernels import run_kernels
    from minillm.model.families import load_model_config
    from minillm.model.loader import make_ops, pick_dtype
    from minillm.model.locate import find_model

    config = load_model_config(find_model(model_of(args)), args.allow_config_key)
    ops, dtype = make_ops(args.backend, "cpu"), pick_dtype(args.dtype, config)
    return run_kernels(config, ops, dtype, args.runs, progress=progress)


def _serving(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from minillm.bench.serving import run_serving

    if args.data is None:
        say("minillm: no --data: the tales and the trace are left out")
    return run_serving(lambda **changes: load_llm(args, **changes), args.runs, args.data, progress)


def _speculation(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from minillm.bench.speculation import run_speculation

    def load(**changes: Any) -> LLM:
        return load_llm(args, **changes)

    return run_speculation(load, args.draft_model, args.tokens, args.runs, args.batch, progress)


def _growth(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from minillm.bench.growth import run_growth

    return run_growth(lambda **changes: load_llm(args, **changes), args.runs, progress=progress)


def _traffic(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from minillm.bench.chips import chip_named
    from minillm.bench.traffic import Shape, run_traffic
    from minillm.bench.works import Attention, estimate
    from minillm.ops.contract import DTYPES

    chip, dtype = chip_named(args.chip), DTYPES["float32" if args.dtype == "auto" else args.dtype]
    report = run_traffic(args.prompt_len, dtype) | {"chip": chip.name}
    for row in report["rows"]:
        try:
            found = estimate(row["rung"], Attention(Shape(row["rows"], row["keys"], dtype=dtype)), chip)
        except UsageError as missing:  # its machine code is not on record for this chip
            row |= {"predicted_s": None, "bound": str(missing)}
        else:
            row |= {"predicted_s": found.seconds, "bound": found.bound}
    return report


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    from minillm.config.sizes import format_bytes

    console, bandwidth = Console(), report["read_bandwidth"]
    console.width = max(console.width, 100)  # a wrapped row of figures is hard to read
    table = _table(
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
    return _ratio_table(title, "minillm", peer["name"], peer["rows"])


def _ratio_table(title: str, own: str, other: str, rows: list[dict[str, Any]]) -> Table:
    table = _table(title, ["what", f"{own} tok/s", f"{other} tok/s", "ratio", "lowest to highest"])
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


def _print_kernels(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 100)  # a wrapped row of figures is hard to read
    table = _table(
        f"{report['dtype']} · {report['kernels']}",
        ["op", "size", "µs", "GB/s", "GFLOP/s", "limit", "share of limit", "reference µs", "ratio"],
    )
    for row in report["rows"]:
        seconds, reference = row["seconds"], row["reference_seconds"]
        table.add_row(
            row["op"],
            row["size"],
            f"{seconds * 1e6:,.1f}",
            f"{row['bytes'] / seconds / 1e9:.1f}",
            f"{row['flops'] / seconds / 1e9:.1f}",
            row["bound"],
            f"{row['share_of_roofline']:.0%}",
            f"{reference * 1e6:,.1f}",
            f"{reference / seconds:.1f}",
        )
    console.print(table)
    bandwidth, peak = report["read_bandwidth"]["median"] / 1e9, report["peak_flops"]["median"] / 1e9
    console.print(f"measured in this run: reading {bandwidth:.1f} GB/s, arithmetic {peak:.0f} GFLOP/s")
    console.print(f"torch {report['machine']['torch']}, {report['machine']['threads']} threads")


def _print_traffic(report: dict[str, Any]) -> None:
    from rich.console import Console

    title = f"attention, counted bytes of global memory · {report['dtype']} · {report['shape']}"
    columns = ["rung", "rows x keys", "read", "written", "scores", "minimum", "ratio"]
    table = _table(title, [*columns, f"predicted, {report['chip']}", "bound"])
    for row in report["rows"]:
        bytes_moved = [row[name] for name in ("read", "written", "scores", "minimum")]
        shape, seconds = f"{row['rows']} x {row['keys']}", row["predicted_s"]
        predicted = f"{seconds * 1e6:,.1f} µs" if seconds else "unknown"
        cells = (*(f"{n:,}" for n in bytes_moved), f"{row['ratio']:.1f}", predicted, row["bound"])
        table.add_row(row["rung"], shape, *cells)
    console = Console()
    console.width = max(console.width, 110)  # a wrapped row of figures is hard to read
    console.print(table)


def _table(title: str, columns: list[str]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table
