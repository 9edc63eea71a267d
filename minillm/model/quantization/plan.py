"""Which matrices of a model are quantised, and in which form: written into its `ModelConfig`.

    ModelConfig.layers[i].quantization    {"qkv": Form, "o": Form, "gate_up": Form, "down": Form}
    ModelConfig.quantization              {"embedding": Form, "head": Form}

So the envelope, the memory estimate and the decoder read it from one place.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import LayerSpec, ModelConfig
from minillm.config.quantization import SCHEMES, Form

DENSE = ("qkv", "o", "gate_up", "down")
MIXTURE = ("qkv", "o", "expert_gate_up", "expert_down")


def planned(config: ModelConfig, scheme: str | None) -> ModelConfig:
    """`config` with the forms of a scheme of `LLM(quantization=...)`; None: as it is."""
    if scheme is None:
        return config
    layers, outside = SCHEMES[scheme]
    head = {} if config.tie_word_embeddings else {"head": outside}
    return replace(
        config,
        layers=tuple(replace(layer, quantization=_forms(layer, layers)) for layer in config.layers),
        quantization={"embedding": outside, **head},
    )


def _forms(layer: LayerSpec, form: Form) -> dict[str, Form]:
    return dict.fromkeys(DENSE if layer.experts is None else MIXTURE, form)
