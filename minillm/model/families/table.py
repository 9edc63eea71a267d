"""All families, by the `model_type` of their config.json."""

from __future__ import annotations

from minillm.model.families import gemma, gpt2, granite, llama, mixture, olmo, phi
from minillm.model.families.family import Family

FAMILIES: dict[str, Family] = {
    "llama": llama.LLAMA,
    "mistral": llama.MISTRAL,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "smollm3": llama.SMOLLM3,
    "olmo2": olmo.OLMO2,
    "olmo3": olmo.OLMO3,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
    "phi3": phi.PHI3,
    "granite": granite.GRANITE,
    "gpt2": gpt2.GPT2,
    "qwen3_moe": mixture.QWEN3_MOE,
    "olmoe": mixture.OLMOE,
    "mixtral": mixture.MIXTRAL,
    "gpt_oss": mixture.GPT_OSS,
}
