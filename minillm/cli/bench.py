"""`minillm bench`: tokens per second on this machine, compared with its limits and with another engine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.cli.bench_cache import add_cache_options, measure_cache, print_cache
from minillm.cli.bench_engine import add_peer_option, measure_engine, print_engine
from minillm.cli.bench_growth import print_growth
from minillm.cli.bench_quality import (
    add_quality_options,
    measure_quality,
    print_quality,
    require_no_quality_options,
)
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
    from minillm import LLM
    from minillm.bench.parts import Progress

KINDS = ("engine", "kernels", "serving", "speculation", "growth", "quality", "cache")


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure prefill and decode",
        description="Prefill and decode rates, the share of the memory bandwidth (measured in the same run), "
        "and peak memory. With `kernels`: each op, compared with the machine's roofline and the reference "
        "(`--kv-dtype int8`: also attention over a cache in 8 bits; `--backend simt`: the bytes that each "
        "attention kernel moves, and its predicted time on a GPU). "
        "With `serving`: the gain from batching, chunks and sharing; with `--workload`, users on the engine: "
        "latencies from the intended start, and exit code 1 where the run was disturbed. With `speculation`: "
        "the gain and the cost of drafts. With `growth`: how cost grows with context, batch, queue and "
        "cache. With `quality`: what each scheme of --quantization loses on a text (or those that "
        "--quantization and --kv-dtype name). With `cache`: the blocks that a KV cache would find on a "
        "recorded TRACE, without a model. All measured times are medians with lowest and highest value, "
        "because shared machines are noisy. Without a model the engine and the quality are measured with "
        "smollm2 where it was pulled, all else with the model that ships.",
        usage="minillm bench [engine|kernels|serving|speculation|growth|quality] [MODEL] [options]\n"
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
    add_peer_option(parser)
    parser.add_argument(
        "--chip", default="h100", metavar="NAME", help="kernels, simt: predict for t4, a100 or h100"
    )
    add_workload_options(parser)
    add_quality_options(parser)
    add_cache_options(parser)
    add_engine_options(parser)
    add_record_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    args.what = args.words.pop(0) if args.words[:1] and args.words[0] in KINDS else "engine"
    if args.what in ("engine", "quality") and model_of(args) is None:
        args.model = pulled_model()
    counted = args.what == "kernels" and args.backend == "simt"
    if args.prompt_len is None:
        args.prompt_len = 128 if counted else 512
    if args.batch is None:
        args.batch = [1, 2, 4, 8, 16, 32] if args.what == "speculation" else [1, 8]
    if args.what == "kernels" and args.record is not None:
        raise UsageError("kernels run without an engine: there is nothing to record", "leave --record out")
    unused = {"cache": ["quantization", "kv_dtype"], "kernels": ["quantization"]}
    if counted:
        unused["kernels"].append("kv_dtype")
    for name in unused.get(args.what, ()):
        if getattr(args, name) is not None:
            raise UsageError(f"bench {args.what} loads no model", f"leave --{name.replace('_', '-')} out")
    if args.what != "engine" and args.peer is not None:
        raise UsageError(f"bench {args.what} has no peer", "leave --peer out")
    require_no_quality_options(args)
    for name in ("prompt_len", "tokens", "runs"):
        require_int("--" + name.replace("_", "-"), getattr(args, name), minimum=1)
    for batch in args.batch:
        require_int("--batch", batch, minimum=1)
    if args.what == "serving" and args.workload:
        return run_workload(args)
    require_no_workload_options(args)
    measure, show = {
        "engine": (measure_engine, print_engine),
        "kernels": (_traffic, _print_traffic) if counted else (_kernels, _print_kernels),
        "serving": (_serving, print_serving),
        "speculation": (_speculation, print_speculation),
        "growth": (_growth, print_growth),
        "quality": (measure_quality, print_quality),
        "cache": (measure_cache, print_cache),
    }[args.what]
    with Bar("measuring", enabled=not args.json) as bar:
        report = measure(args, bar)
    if args.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


def _kernels(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from minillm.bench.kernels import run_kernels
    from minillm.bench.kv_attention import run_kv_attention
    from minillm.model.families import load_model_config
    from minillm.model.loader import make_ops, pick_dtype, require_kv_dtype, with_kv_dtype
    from minillm.model.locate import find_model

    config = load_model_config(find_model(model_of(args)), args.allow_config_key)
    ops, dtype = make_ops(args.backend, "cpu"), pick_dtype(args.dtype, config)
    require_kv_dtype(with_kv_dtype(config, args.kv_dtype), ops)
    report = run_kernels(config, ops, dtype, args.runs, progress=progress)
    if args.kv_dtype is not None:
        report["kv"] = run_kv_attention(config, ops, dtype, args.kv_dtype, args.runs)
    return report


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


def _print_kernels(report: dict[str, Any]) -> None:
    from rich.console import Console

    from minillm.tables import figures_table

    console = Console()
    console.width = max(console.width, 100)  # a wrapped row of figures is hard to read
    table = figures_table(
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
    if kv := report.get("kv"):
        plain, coded = (each["median"] * 1e6 for each in kv["seconds"])
        console.print(
            f"decode attention, {kv['sequences']} sequences of {kv['keys']:,} keys: {plain:,.0f} µs in "
            f"{report['dtype']}, {coded:,.0f} µs in {kv['kv_dtype']}: {kv['ratio']['median']:.2f} x "
            f"({kv['ratio']['low']:.2f} to {kv['ratio']['high']:.2f})"
        )
    console.print(f"torch {report['machine']['torch']}, {report['machine']['threads']} threads")


def _print_traffic(report: dict[str, Any]) -> None:
    from rich.console import Console

    from minillm.tables import figures_table

    title = f"attention, counted bytes of global memory · {report['dtype']} · {report['shape']}"
    columns = ["rung", "rows x keys", "read", "written", "scores", "minimum", "ratio"]
    table = figures_table(title, [*columns, f"predicted, {report['chip']}", "bound"])
    for row in report["rows"]:
        bytes_moved = [row[name] for name in ("read", "written", "scores", "minimum")]
        shape, seconds = f"{row['rows']} x {row['keys']}", row["predicted_s"]
        predicted = f"{seconds * 1e6:,.1f} µs" if seconds else "unknown"
        cells = (*(f"{n:,}" for n in bytes_moved), f"{row['ratio']:.1f}", predicted, row["bound"])
        table.add_row(row["rung"], shape, *cells)
    console = Console()
    console.width = max(console.width, 110)  # a wrapped row of figures is hard to read
    console.print(table)
