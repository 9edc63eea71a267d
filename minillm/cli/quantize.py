"""`minillm quantize`: a smaller copy of a model, in compressed-tensors format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.cli.options import add_allow_option
from minillm.cli.parser import Once, Parser

if TYPE_CHECKING:
    from minillm.model.compress.folder import Made


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "quantize",
        help="write a smaller copy of a model: 8 or 4 bits for its matrices",
        description="Write a folder in compressed-tensors format, which transformers loads. The "
        "matrices of the layers are quantised; embeddings, head, norms and routers stay as they are. At the "
        "end it prints what was lost: perplexity, and how often the most likely next token is the same.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a GGUF file, a hub id, or a model's name")
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    parser.add_argument(
        "--scheme",
        action=Once,
        required=True,
        metavar="NAME",
        help="w8a16 (8-bit integers), w4a16 (4-bit integers) or fp8 (e4m3)",
    )
    parser.add_argument(
        "--group",
        action=Once,
        metavar="N",
        help="inputs that share a scale: 32, 64, 128 or channel, which is all (default: 64 with w4a16, else "
        "channel)",
    )
    parser.add_argument(
        "--asymmetric", action="store_true", help="with w4a16: a zero point for each group, next to its scale"
    )
    parser.add_argument(
        "--calibrate",
        action=Once,
        metavar="TEXT",
        help="use GPTQ on this file, or on text that the model writes: self (default: round to nearest)",
    )
    parser.add_argument(
        "--evaluate",
        action=Once,
        metavar="TEXT",
        help="measure on this file, or on self (default: the last fifth of --calibrate's file, else self)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="leave these matrices as they are, e.g. down_proj; repeatable",
    )
    add_allow_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Quantise, and say what was written and lost."""
    from minillm.model.compress.folder import quantize
    from minillm.model.compress.schemes import Scheme
    from minillm.model.compress.text import Texts
    from minillm.model.locate import find_model
    from minillm.progress import Bar

    scheme = Scheme(args.scheme, args.group, args.asymmetric)
    with Bar("quantising layers") as bar:
        made = quantize(
            find_model(args.model),
            args.out,
            scheme,
            Texts(args.calibrate, args.evaluate),
            args.ignore,
            tuple(args.allow_config_key),
            bar,
        )
    if args.json:
        print(json.dumps({"model": args.model, "out": str(args.out), **_report(made)}))
    else:
        _show(args.out, made)
    return 0


def _report(made: Made) -> dict[str, Any]:
    calibration, evaluation = made.calibrated_on, made.measured_on
    return {
        "scheme": str(made.scheme),
        "method": "round to nearest" if calibration is None else "GPTQ",
        "calibration": calibration and {"text": calibration.source, "tokens": calibration.num_tokens},
        "matrices": made.num_matrices,
        "bytes": made.num_bytes,
        "original_bytes": made.original_bytes,
        "evaluation": {"text": evaluation.source, "tokens": evaluation.num_tokens},
        "perplexity": made.after.for_json,
        "original_perplexity": made.before.for_json,
        "greedy_agreement": made.after.agreement(made.before),
    }


def _show(out: Path, made: Made) -> None:
    from minillm.config.sizes import format_bytes

    report = _report(made)
    on = (
        f" on {made.calibrated_on.num_tokens} tokens, {made.calibrated_on.source}"
        if made.calibrated_on
        else ""
    )
    print(f"{out}: {made.scheme}; {report['method']}{on}")
    print(
        f"{made.num_matrices} matrices; {format_bytes(made.num_bytes)} instead of "
        f"{format_bytes(made.original_bytes)}"
    )
    before, after = made.before.perplexity, made.after.perplexity
    print(f"measured on {made.measured_on.num_tokens} tokens, {made.measured_on.source}:")
    print(f"  perplexity        {after:.4f} instead of {before:.4f} ({after / before - 1:+.2%})")
    print(f"  greedy agreement  {report['greedy_agreement']:.2%}")
