"""How many bytes the quantised matrices of a model save, from its config alone.

    in a layer   qkv [q + 2 kv, hidden]   o [hidden, q]   gate_up [2 inner, hidden]   down [hidden, inner]
    outside      embedding and head [vocab, hidden]

Experts count as many times as there are, or as one token uses. What a backend's layout adds (rows filled up
to 16, scales to whole lines) is left out: it is below 1 % of a matrix of usual size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from minillm.config import LayerSpec, ModelConfig
from minillm.config.quantization import Form


class Sized(NamedTuple):
    """A quantised matrix [out, in]: how many there are, and how many one decoded token uses."""

    form: Form
    out: int
    size: int
    number: int = 1
    used: int = 1


def saved_bytes(config: ModelConfig, number_bytes: int) -> int:
    """Bytes that the model is smaller than with `number_bytes` for every weight."""
    return sum(m.number * _saved(m, number_bytes) for m in quantized_matrices(config))


def saved_reads(config: ModelConfig, number_bytes: int) -> int:
    """Bytes that a decoded token reads less."""
    return sum(m.used * _saved(m, number_bytes) for m in quantized_matrices(config))


def _saved(matrix: Sized, number_bytes: int) -> int:
    return matrix.out * matrix.size * number_bytes - matrix.form.nbytes(matrix.out, matrix.size)


def quantized_matrices(config: ModelConfig) -> Iterator[Sized]:
    """All matrices that are quantised."""
    for layer in config.layers:
        shapes = _shapes(config, layer)
        for name, form in (layer.quantization or {}).items():
            experts = layer.experts if name.startswith("expert_") else None
            count, used = (experts.count, experts.per_token) if experts else (1, 1)
            yield Sized(form, *shapes[name], count, used)
    tied = config.tie_word_embeddings
    for name, form in (config.quantization or {}).items():
        used = 1 if tied or name == "head" else 0  # a lookup reads one row
        yield Sized(form, config.vocab_size, config.hidden_size, 1, used)


def _shapes(config: ModelConfig, layer: LayerSpec) -> dict[str, tuple[int, int]]:
    hidden, prefix = config.hidden_size, "" if layer.experts is None else "expert_"
    inner = config.intermediate_size if layer.experts is None else layer.experts.size
    return {
        "qkv": (config.q_size + 2 * config.kv_size, hidden),
        "o": (hidden, config.q_size),
        f"{prefix}gate_up": ((2 if config.gated else 1) * inner, hidden),
        f"{prefix}down": (hidden, inner),
    }
