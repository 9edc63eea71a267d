"""`minillm bench quality`: what the schemes of `--quantization` lose on a text, as a table."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from minillm.cli.options import load_llm
from minillm.cli.parser import Once, Parser
from minillm.config.quantization import QUANTIZATIONS
from minillm.errors import UsageError

if TYPE_CHECKING:
    from minillm.bench.parts import Progress
    from minillm.bench.quality import Form


def add_quality_options(parser: Parser) -> None:
    """--evaluate."""
    parser.add_argument(
        "--evaluate",
        action=Once,
        metavar="TEXT",
        help="quality: measure on this file (default: a text that the model writes)",
    )


def require_no_quality_options(args: argparse.Namespace) -> None:
    """Raises UsageError if another bench got them."""
    if args.what != "quality" and args.evaluate is not None:
        raise UsageError(f"bench {args.what} reads no text", "leave --evaluate out")


def measure_quality(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The model as it is, and in all schemes, or with --quantization and --kv-dtype.

    Raises:
        MinillmError: the model or the text cannot be used.
    """
    from minillm.bench.quality import run_quality

    forms: list[Form] = [{"quantization": name, "kv_dtype": None} for name in QUANTIZATIONS]
    if args.quantization is not None or args.kv_dtype is not None:
        forms = [{"quantization": args.quantization, "kv_dtype": args.kv_dtype}]
    return run_quality(lambda **changes: load_llm(args, **changes), forms, args.evaluate, progress)


def print_quality(report: dict[str, Any]) -> None:
    """Print a row for each scheme, compared with the model as it is."""
    from rich.console import Console

    from minillm.config.sizes import format_bytes
    from minillm.tables import figures_table

    title = f"{report['model']} · {report['dtype']} · {report['backend']} · {report['tokens']:,} tokens"
    table = figures_table(
        title, ["weights", "keys and values", "perplexity", "change", "same best token", "bytes a step"]
    )
    plain = report["perplexity"] or math.inf
    table.add_row("", "", f"{plain:.4f}", "", "", format_bytes(report["bytes_per_step"]))
    for row in report["rows"]:
        table.add_row(
            row["quantization"] or "",
            row["kv_dtype"] or "",
            f"{row['perplexity'] or math.inf:.4f}",
            f"{(row['perplexity'] or math.inf) / plain - 1:+.2%}",
            f"{row['greedy_agreement']:.1%}",
            format_bytes(row["bytes_per_step"]),
        )
    console = Console()
    console.width = max(console.width, 90)  # a wrapped row of figures is hard to read
    console.print(table)
    console.print(f"text: {report['text']}", soft_wrap=True)
