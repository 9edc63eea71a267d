"""config.json from a GGUF file's metadata.

Keys of an architecture begin with its name: `llama.block_count`. As in a config.json, a key that is ignored
may change the forward pass, so a key of the architecture that is not in `_READ` or `_INERT` is refused.

llama.cpp's "llama" is Llama and Mistral: both have the same tensors. Llama 3's rope factors are not metadata
but a tensor, `rope_freqs.weight`; `_llama3_rope` finds the parameters that give exactly these factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import shown
from minillm.errors import UnsupportedModel
from minillm.model.families import FAMILIES
from minillm.model.gguf.header import GGUFFile, GGUFTensor
from minillm.model.gguf.metadata import Metadata

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_READ = frozenset(
    "block_count context_length embedding_length feed_forward_length vocab_size attention.head_count "
    "attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon "
    "attention.sliding_window rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor "
    "rope.scaling.original_context_length rope.scaling.attn_factor rope.scaling.yarn_beta_fast "
    "rope.scaling.yarn_beta_slow".split()
)
_INERT = frozenset("rope.scaling.finetuned tensor_data_layout".split())
# Keys that change nothing at one value.
_ONLY_AT: Mapping[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "rope.scale_linear": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "use_parallel_residual": False,
}


def architecture(file: GGUFFile) -> str:
    """The architecture's name.

    Raises:
        UnsupportedModel: no model, a part of one, or another architecture.
    """
    metadata = Metadata(file.path.name, file.metadata)
    kind = metadata.text("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(
            f"{file.path.name} holds no model but {shown(kind)}", "give the model's own file"
        )
    parts = metadata.integer("split.count", 0)
    if parts > 1:
        number = metadata.integer("split.no", 0) + 1
        raise UnsupportedModel(
            f"{file.path.name} is part {number} of {parts} of a split GGUF",
            "join them first: llama-gguf-split --merge FIRST.gguf WHOLE.gguf",
        )
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF architecture {shown(name)} is not supported", f"supported: {', '.join(ARCHITECTURES)}"
        )
    return name


def config_json(file: GGUFFile, rope_factors: Sequence[float] | None) -> dict[str, Any]:
    """The content of config.json, without `dtype`; `rope_factors` are the numbers of rope_freqs.weight.

    Raises:
        UnsupportedModel: a key or value that cannot be honoured.
    """
    name = architecture(file)
    read = _Keys(Metadata(file.path.name, file.metadata), name)
    read.refuse_unknown()
    heads, hidden = read.integer("attention.head_count"), read.integer("embedding_length")
    head_dim = read.integer("attention.key_length", hidden // max(heads, 1))
    read.require("attention.value_length", head_dim)
    read.require("rope.dimension_count", head_dim)
    window = read.integer("attention.sliding_window", 0)
    family = "mistral" if name == "llama" and window else name
    config: dict[str, Any] = {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        "vocab_size": _rows(file, "token_embd.weight"),
        "hidden_size": hidden,
        "intermediate_size": read.integer("feed_forward_length"),
        "num_hidden_layers": read.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": read.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": read.integer("context_length"),
        "rope_theta": read.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(read, rope_factors, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    return config | _window(read, family, window) | _biases(file.tensors, family)


class _Keys:
    """The keys of one architecture, without its name in front."""

    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self.metadata, self.prefix = metadata, f"{architecture}."

    def refuse_unknown(self) -> None:
        for key, value in self.metadata.values.items():
            short = key.removeprefix(self.prefix)
            if short == key or short in _READ or short in _INERT:
                continue
            if short not in _ONLY_AT:
                raise UnsupportedModel(
                    f"{self.metadata.name}: the key {shown(key)} is not known, so it cannot be honoured"
                )
            if value != _ONLY_AT[short]:
                raise UnsupportedModel(
                    f"{self.metadata.name}: {key}={shown(value)} is not supported",
                    f"only {_ONLY_AT[short]} is",
                )

    def integer(self, key: str, default: int | None = None) -> int:
        return self.metadata.integer(self.prefix + key, *([] if default is None else [default]))

    def number(self, key: str, default: float | None = None) -> float:
        return self.metadata.number(self.prefix + key, *([] if default is None else [default]))

    def text(self, key: str, default: str) -> str:
        return self.metadata.text(self.prefix + key, default)

    def has(self, key: str) -> bool:
        return self.prefix + key in self.metadata.values

    def require(self, key: str, wanted: int) -> None:
        if self.integer(key, wanted) != wanted:
            raise UnsupportedModel(
                f"{self.metadata.name}: {self.prefix}{key}={self.integer(key)} is not supported",
                f"it must be {wanted}, the size of a head",
            )


def _rows(file: GGUFFile, name: str) -> int:
    tensor: GGUFTensor | None = file.tensors.get(name)
    if tensor is None:
        raise UnsupportedModel(
            f"{file.path.name} holds no {name}", "a file with a vocabulary alone is no model"
        )
    return tensor.shape[0]


def _window(read: _Keys, family: str, window: int) -> dict[str, Any]:
    if family == "mistral":
        return {"sliding_window": window}
    if window:
        raise UnsupportedModel(f"{read.metadata.name}: {family} with a sliding window is not supported")
    return {}


def _biases(tensors: Mapping[str, GGUFTensor], family: str) -> dict[str, bool]:
    """A family that has biases by nature says nothing about them; others are asked for their tensors."""
    names = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return {key: name in tensors for key, name in names.items() if key in FAMILIES[family].reads}


def _rope_scaling(read: _Keys, factors: Sequence[float] | None, head_dim: int) -> dict[str, Any] | None:
    kind, factor = read.text("rope.scaling.type", "none"), read.number("rope.scaling.factor", 1.0)
    if read.number("rope.scaling.attn_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"{read.metadata.name}: rope.scaling.attn_factor is supported at 1 only")
    if factors is not None:
        if kind not in ("none", "linear") or factor != 1.0:
            raise UnsupportedModel(f"{read.metadata.name}: rope_freqs.weight with rope scaling {shown(kind)}")
        return _llama3_rope(factors, read.number("rope.freq_base", 10000.0), head_dim)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedModel(
            f"{read.metadata.name}: rope scaling {shown(kind)} is not supported", "supported: linear, yarn"
        )
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": read.integer(
            "rope.scaling.original_context_length", read.integer("context_length")
        ),
    }
    betas = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
    return scaling | {name: read.number(key) for name, key in betas.items() if read.has(key)}


def _llama3_rope(factors: Sequence[float], theta: float, head_dim: int) -> dict[str, Any] | None:
    """The `rope_scaling` of Llama 3 whose factors are these; None where all are 1.

    Published models differ in `factor` alone, which is the largest of the factors.
    """
    if all(f == 1.0 for f in factors):
        return None
    if len(factors) != head_dim // 2:
        raise UnsupportedModel(
            f"rope_freqs.weight holds {len(factors)} numbers",
            f"a head of {head_dim} has {head_dim // 2} pairs",
        )
    if theta < 1 or min(factors) <= 0:
        raise UnsupportedModel("rope_freqs.weight and rope.freq_base hold numbers that no model has")
    scaling = {
        "rope_type": "llama3",
        "factor": max(factors),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = [_llama3_factor(theta ** (2 * i / head_dim), max(factors)) for i in range(head_dim // 2)]
    if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(expected, factors, strict=True)):
        raise UnsupportedModel("rope_freqs.weight holds other factors than those of Llama 3")
    return scaling


def _llama3_factor(period: float, factor: float) -> float:
    """How much slower a rotation of `period` / 2 pi turns per token becomes; 8192, 1 and 4 as above."""
    turns = 8192 / (2 * math.pi * period)  # in the original context
    if turns > 4:
        return 1.0
    if turns < 1:
        return factor
    smooth = (turns - 1) / 3
    return 1 / ((1 - smooth) / factor + smooth)
