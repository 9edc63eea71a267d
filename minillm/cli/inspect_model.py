"""`minillm inspect`: the config, size and costs of a model, from its config and headers. Reads no weights."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from minillm.cli.inspect_layers import describe_layers, describe_rope, layer_tables
from minillm.cli.inspect_schemes import describe_kv_dtypes, describe_schemes, scheme_tables
from minillm.cli.options import add_allow_option, add_kv_dtype_option, add_model_option, model_of
from minillm.cli.parser import Parser
from minillm.cli.planned import planned_config
from minillm.config import DTYPES, ModelConfig
from minillm.config.quantization import QUANTIZATIONS
from minillm.errors import UsageError
from minillm.tables import folding_table

LENGTHS = (128, 512, 1024, 4096, 8192, 32768, 131072)
# Where a value has the source of other config keys: the first that the config gives is shown.
_DECIDED_BY = {
    "norm_eps": ("rms_norm_eps",),
    "dtype": ("torch_dtype",),
    "eos_token_ids": ("eos_token_id",),
    "rope": ("rope_theta", "rope_local_base_freq"),
    "window": ("sliding_window",),
    "experts": ("num_experts", "num_local_experts", "num_experts_per_tok"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logits_divisor": ("logits_scaling",),
    "logits_softcap": ("final_logit_softcapping",),
}


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="show a model's config, size and costs",
        description="The resolved config with the source of each value, the parts of the block layer by "
        "layer, the number of parameters, KV bytes per token, the tokens that fit in a given memory, the "
        "bytes in every scheme of --quantization and --kv-dtype, and the costs of a context. Reads no "
        "weights.",
    )
    add_model_option(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="dtype of weights and cache")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="as if loaded in 8 or 4 bits")
    add_kv_dtype_option(parser)
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
    from minillm.model.locate import find_model

    folder = find_model(model_of(args))
    config = planned_config(args, folder)
    report = collect(config, args.dtype, args.memory, args.context)
    plain = planned_config(
        argparse.Namespace(**{**vars(args), "quantization": None, "kv_dtype": None}), folder
    )
    report |= _choices(plain, args.dtype, report["memory"])
    _add_end_of_text(report["config"], folder, config)
    if args.json:
        print(json.dumps({"model": folder.name, **report}))
    else:
        _print(folder.name, config, report)
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
    from minillm.model.costs import decode_bytes, matmul_weights, prefill_flops
    from minillm.model.loader import pick_dtype
    from minillm.model.quantization.sizes import saved_bytes

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
        "layers": describe_layers(config),
        "parameters": config.num_parameters,
        "active_parameters": matmul_weights(config),
        "weight_bytes": config.num_parameters * number_bytes - saved_bytes(config, number_bytes),
        "quantized": _quantized(config),
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


def _choices(plain: ModelConfig, dtype: str, memory: int) -> dict[str, Any]:
    """The costs of the model in every scheme, whichever was asked for."""
    from minillm.model.loader import pick_dtype

    number_bytes = pick_dtype(dtype, plain).itemsize
    return {
        "schemes": describe_schemes(plain, number_bytes),
        "kv_dtypes": describe_kv_dtypes(plain, number_bytes, memory),
    }


def _quantized(config: ModelConfig) -> dict[str, str]:
    """The form of every kind of matrix that is quantised, in words."""
    kinds = {name: str(form) for layer in config.layers for name, form in (layer.quantization or {}).items()}
    return kinds | {name: str(form) for name, form in (config.quantization or {}).items()}


def _fields(config: ModelConfig) -> list[dict[str, Any]]:
    """Each field of the config, and what its layers vary in: name, value, and the source of the value."""
    found = []
    for name, value in (asdict(config) | _of_layers(config)).items():
        if name not in ("sources", "layers", "quantization") and (name != "allowed_keys" or value):
            found.append({"key": name, "value": value, "source": _source(config, name)})
    return found


def _of_layers(config: ModelConfig) -> dict[str, list[Any]]:
    """The different ropes, windows and experts of the layers, in the order of their first layer."""
    experts = dict.fromkeys(layer.experts for layer in config.layers if layer.experts is not None)
    return {
        "rope": [describe_rope(rope, config.head_dim) for rope in config.ropes],
        "window": list(dict.fromkeys(layer.window for layer in config.layers)),
        "experts": [asdict(spec) for spec in experts],
    }


def _source(config: ModelConfig, name: str) -> str:
    """The place that the value comes from; "family": the family decides it."""
    found = [config.sources.get(key) for key in (name, *_DECIDED_BY.get(name, ()))]
    given = [source for source in found if source not in (None, "default")]
    return given[0] or "" if given else "default" if "default" in found else "family"


def _print(name: str, config: ModelConfig, report: dict[str, Any]) -> None:
    from minillm.config.sizes import format_bytes

    console = Console()
    table = folding_table("key", "value", "source", title=f"{name}: resolved config")
    for field in report["config"]:
        if _says_something(config, field):
            table.add_row(field["key"], _shown(field["key"], field["value"]), field["source"])
    console.print(table, *layer_tables(report["layers"]), sep="\n")
    size = f"{format_bytes(report['weight_bytes'])} in {report['dtype']}"
    console.print(f"{report['parameters']:,} parameters, {size}")
    if any(layer.experts is not None for layer in config.layers):
        console.print(f"{report['active_parameters']:,} of them are active per token: not the unused experts")
    for name, form in report["quantized"].items():
        console.print(f"{name}: {form}")
    if report["dtype"] == "float32":
        console.print("this is an upper limit: CPU kernels store a matrix as bfloat16 if all its numbers fit")
    fits = f"{format_bytes(report['memory'])} of KV memory holds {report['tokens_that_fit']:,} tokens"
    console.print(f"{format_bytes(report['kv_bytes_per_token'])} of KV cache per token; {fits}")
    console.print(*scheme_tables(report), sep="\n")
    costs = folding_table("tokens", "KV cache", "prefill", "read", "fit")
    costs.title = "the costs of a context: bytes read per decoded token, sequences that fit"
    for row in report["contexts"]:
        costs.add_row(
            f"{row['tokens']:,}",
            format_bytes(row["kv_bytes"]),
            f"{row['prefill_flops'] / 1e9:,.1f} GFLOP",
            format_bytes(row["bytes_read_per_decoded_token"]),
            f"{row['sequences_that_fit']:,}",
        )
    console.print(costs)


def _says_something(config: ModelConfig, field: dict[str, Any]) -> bool:
    """Whether a field deserves a row: not if the model lacks the part, or has it as Llama has."""
    name, value = field["key"], field["value"]
    default = ModelConfig.__dataclass_fields__.get(name)
    if name == "intermediate_size":
        return any(layer.experts is None for layer in config.layers)
    if name in ("rope", "window", "experts"):
        return value not in ([], [None])
    if name.endswith("_bias"):
        return bool(value)
    return default is None or value != default.default


def _shown(name: str, value: Any) -> str:
    """A value for the table; the tables of the block say more about ropes, windows and experts."""
    if name == "rope":
        return "; ".join(f"{rope['kind']}, theta {rope['theta']:,.10g}" for rope in value)
    if name == "window":
        return "; ".join("none" if window is None else f"{window:,}" for window in value)
    if name == "experts":
        return "; ".join(f"{spec['count']}, {spec['per_token']} per token" for spec in value)
    return str(value)
