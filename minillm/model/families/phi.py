"""Phi-3, 3.5 and 4-mini: fused projections in the checkpoint, a partly rotated head, longrope.

longrope    sequences up to the original length and longer ones have different angles, so a sequence must
            stay on one side: its keys in the cache would be wrong on the other
"""

from __future__ import annotations

from minillm.model.families.family import LLAMA_PARTS, CheckpointNames, Family
from minillm.model.rope_config import RopeRules

PHI3 = Family(
    "Phi3ForCausalLM",
    reads=frozenset({"sliding_window", "partial_rotary_factor"}),
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "original_max_position_embeddings": 4096,
    },
    names=CheckpointNames({**LLAMA_PARTS, "qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"}),
    rope=RopeRules(partial=True, kinds={"su": "longrope", "yarn": "longrope"}),
    windows="all",
)
