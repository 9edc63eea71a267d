"""`minillm convert`: a GGUF file as a model folder in Hugging Face layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from minillm.cli.parser import Parser


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "convert",
        help="make a model folder of a GGUF file",
        description="Write a folder in Hugging Face layout: config, tokenizer, chat template and weights, as "
        "plain numbers. --model FILE.gguf does the same into the cache; this is for a folder of your own.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="of the stored weights and of the arithmetic (default auto: float32 if FILE stores matrices in "
        "F32 or F16, bfloat16 if all are BF16; of a quantised FILE, bfloat16 weights and float32 arithmetic)",
    )
    parser.add_argument(
        "--keep-quantized",
        action="store_true",
        help="keep the blocks of Q8_0, Q4_0, Q4_1, Q4_K and Q6_K: the file's own numbers, for minillm alone",
    )
    parser.add_argument(
        "--tokenizer-only", action="store_true", help="write no config and no weights; for every architecture"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    from minillm.config.sizes import format_bytes
    from minillm.model.gguf.convert import convert, convert_tokenizer
    from minillm.progress import Bar

    if args.tokenizer_only:
        convert_tokenizer(args.file, args.out)
        print(f"{args.out}: the tokenizer of {args.file.name}")
        return 0
    with Bar("converting", in_bytes=True) as bar:
        made = convert(args.file, args.out, args.dtype, bar, args.keep_quantized)
    stored, computed = str(made.dtype).removeprefix("torch."), made.config["torch_dtype"]
    print(
        f"{args.out}: {made.config['model_type']}, {len(made.tensors)} tensors, "
        f"{format_bytes(made.num_bytes)} in {stored}"
        + (f", to be computed in {computed}" if computed != stored else "")
        + (f"; {len(made.kept)} of them keep their blocks" if made.kept else "")
    )
    return 0
