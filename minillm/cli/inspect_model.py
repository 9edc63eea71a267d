"""`minillm inspect`: a model's config, size and costs, computed from its config only."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from minillm.cli.options import add_allow_option, add_model_option, model_of
from minillm.cli.parser import Parser
from minillm.config import DTYPES, ModelConfig
from minillm.errors import UsageError
from minillm.tables import folding_table

if TYPE_CHECKING:
    from minillm.config import RopeConfig

LENGTHS = (128, 512, 1024, 4096, 8192, 32768, 131072)
# Fields of ModelConfig that depend on several config keys: the key whose source is shown.
_DECIDED_BY = {"layer_windows": "sliding_window", "eos_token_ids": "eos_token_id"}


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="show a model's config, size and costs",
        description="The resolved config with the source of each value, the number of parameters, KV bytes "
        "per token, the tokens that fit in a given memory, and the costs of a context. Reads no weights.",
    )
    add_model_option(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="dtype of weights and cache")
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help="size of the KV memory (default 1GiB)"
    )
    parser.add_argument(
        "--context",
        type=int,
        action="append",
        metavar="N",
        help="show the costs of N tokens; may be repeated",
    )
    add_allow_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from minillm.model.families import load_model_config
    from minillm.model.locate import find_model

    folder = find_model(model_of(args))
    config = load_model_config(folder, args.allow_config_key)
    report = collect(config, args.dtype, args.memory, args.context)
    _add_end_of_text(report["config"], folder, config)
    if args.json:
        print(json.dumps({"model": folder.name, **report}))
    else:
        _print(folder.name, report)
    return 0


def _add_end_of_text(fields: list[dict[str, Any]], folder: Path, config: ModelConfig) -> None:
    """Show every id that ends a text, and which files name it."""
    from minillm.config.files import exists
    from minillm.model.generation import end_of_text, load_generation_config
    from minillm.text.tokenizer import FILE, Tokenizer

    own = Tokenizer(folder).eos_token_ids if exists(folder / FILE) else ()
    ends = end_of_text(load_generation_config(folder), config, own)
    places = "; ".join(f"{token_id}: {', '.join(names)}" for token_id, names in ends.items())
    row = next(field for field in fields if field["key"] == "eos_token_ids")
    row |= {"value": list(ends), "source": places or "no file names one"}


def collect(config: ModelConfig, dtype: str, memory: str, lengths: list[int] | None) -> dict[str, Any]:
    """The values of the report; sizes in bytes."""
    from minillm.config.sizes import parse_bytes
    from minillm.model.costs import decode_bytes, prefill_flops
    from minillm.model.loader import pick_dtype

    number_bytes = pick_dtype(dtype, config).itemsize
    per_token = config.kv_bytes_per_token(number_bytes)
    budget = parse_bytes(memory, "--memory")
    if lengths is None:
        lengths = [n for n in LENGTHS if n < config.context_limit] + [config.context_limit]
    for length in lengths:
        if not 1 <= length <= config.context_limit:
            raise UsageError(f"--context {length} is outside 1..{config.context_limit}")
    return {
        "config": _fields(config),
        "parameters": config.num_parameters,
        "weight_bytes": config.num_parameters * number_bytes,
        "dtype": str(pick_dtype(dtype, config)).removeprefix("torch."),
        "kv_bytes_per_token": per_token,
        "memory": budget,
        "tokens_that_fit": budget // per_token,
        "contexts": [
            {
                "tokens": n,
                "kv_bytes": n * per_token,
                "prefill_flops": prefill_flops(config, n),
                "bytes_read_per_decoded_token": decode_bytes(config, n, number_bytes, number_bytes),
                "sequences_that_fit": budget // (n * per_token),
            }
            for n in lengths
        ],
    }


def _fields(config: ModelConfig) -> list[dict[str, Any]]:
    """Each field of the config: name, value, and the source of the value."""
    fields, values = [], asdict(config)
    values["layer_windows"] = [layer.window for layer in config.layers]
    del values["layers"]
    for name, value in values.items():
        if name == "sources" or (name == "allowed_keys" and not value):
            continue
        source = config.sources.get(name) or config.sources.get(_DECIDED_BY.get(name, ""), "family")
        fields.append({"key": name, "value": value, "source": source})
    return fields


def _print(name: str, report: dict[str, Any]) -> None:
    from minillm.config.sizes import format_bytes

    console = Console()
    table = folding_table("key", "value", "source", title=f"{name}: resolved config")
    for field in report["config"]:
        table.add_row(field["key"], _shown(field["value"]), field["source"])
    console.print(table)
    console.print(
        f"{report['parameters']:,} parameters, {format_bytes(report['weight_bytes'])} in {report['dtype']}"
    )
    if report["dtype"] == "float32":
        console.print("this is an upper limit: CPU kernels store a matrix as bfloat16 if all its numbers fit")
    fits = f"{format_bytes(report['memory'])} of KV memory holds {report['tokens_that_fit']:,} tokens"
    console.print(f"{format_bytes(report['kv_bytes_per_token'])} of KV cache per token; {fits}")
    costs = folding_table("tokens", "KV cache", "prefill", "read per decoded token", "sequences that fit")
    costs.title = "the costs of a context"
    for row in report["contexts"]:
        costs.add_row(
            f"{row['tokens']:,}",
            format_bytes(row["kv_bytes"]),
            f"{row['prefill_flops'] / 1e9:,.1f} GFLOP",
            format_bytes(row["bytes_read_per_decoded_token"]),
            f"{row['sequences_that_fit']:,}",
        )
    console.print(costs)


def _shown(value: Any) -> str:
    """A value for the table: equal layer windows are grouped, and rope's default values are left out."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={v}" for key, v in value.items() if key in _rope_keys(value))
    if isinstance(value, list | tuple) and len(set(value)) == 1 and len(value) > 1:
        return f"{value[0]} in all {len(value)} layers"
    return str(value)


def _rope_keys(rope: dict[str, Any]) -> set[str]:
    from minillm.config import RopeConfig

    default: RopeConfig = RopeConfig()
    return {"kind", "theta"} | {key for key, value in rope.items() if value != getattr(default, key)}
