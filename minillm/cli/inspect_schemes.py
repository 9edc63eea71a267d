"""What a model would take in every scheme of `--quantization`, and its KV cache in every `--kv-dtype`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minillm.config import ModelConfig
from minillm.config.quantization import SCHEMES
from minillm.config.sizes import format_bytes
from minillm.tables import folding_table

if TYPE_CHECKING:
    from rich.table import Table


def describe_schemes(plain: ModelConfig, number_bytes: int) -> list[dict[str, Any]]:
    """Bytes of all weights, and of those that a decoded token reads, in each scheme.

    `plain` is the config without `--quantization`. A model that is stored quantised has no other scheme: [].
    """
    from minillm.model.costs import matmul_weights
    from minillm.model.quantization.plan import planned
    from minillm.model.quantization.sizes import quantized_matrices, saved_bytes, saved_reads

    if any(quantized_matrices(plain)):
        return []
    configs = {name: planned(plain, name) for name in (None, *SCHEMES)}
    return [
        {
            "quantization": name,
            "weight_bytes": plain.num_parameters * number_bytes - saved_bytes(config, number_bytes),
            "bytes_per_step": matmul_weights(plain) * number_bytes - saved_reads(config, number_bytes),
        }
        for name, config in configs.items()
    ]


def describe_kv_dtypes(plain: ModelConfig, number_bytes: int, memory: int) -> list[dict[str, Any]]:
    """Bytes of a token's keys and values, and the tokens that fit in `memory` bytes."""
    from minillm.model.loader import with_kv_dtype

    names = (None, "int8", "fp8") if plain.head_dim % 4 == 0 else (None,)
    sizes = {name: with_kv_dtype(plain, name).kv_bytes_per_token(number_bytes) for name in names}
    return [
        {"kv_dtype": name, "bytes_per_token": size, "tokens_that_fit": memory // size}
        for name, size in sizes.items()
    ]


def scheme_tables(report: dict[str, Any]) -> list[Table]:
    """Both tables, without those that have one row or none."""
    weights = folding_table("weights in", "all", "read by a decoded token", title="--quantization")
    for row in report["schemes"]:
        read = format_bytes(row["bytes_per_step"])
        weights.add_row(row["quantization"] or report["dtype"], format_bytes(row["weight_bytes"]), read)
    fit = f"tokens in {format_bytes(report['memory'])}"
    cache = folding_table("keys and values in", "of a token", fit, title="--kv-dtype")
    for row in report["kv_dtypes"]:
        size = format_bytes(row["bytes_per_token"])
        cache.add_row(row["kv_dtype"] or report["dtype"], size, f"{row['tokens_that_fit']:,}")
    return [table for table in (weights, cache) if table.row_count > 1]
