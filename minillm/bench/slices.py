"""GPU slices: how the load of the pressure demonstration fits a part of a GPU, planned without one.

    a slice of 10 GB    | weights | reserve | KV blocks ....................... |

An A100 or H100 can be divided into slices with memory of their own (MIG). A model's config gives the bytes of
its weights and of a KV block; the rest of a slice holds blocks. The scheduler then runs the load over so many
blocks without a model (`dry.py`): what runs at once and what is preempted depends on counts alone. No time is
predicted, because a slice also has fewer multiprocessors.

Profiles: NVIDIA, "MIG User Guide", tables of supported profiles. Their names round the memory: 1g.10gb of an
H100 has 9.75 GiB in all; the nominal sizes are used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from minillm.bench.dry import DryEngine
from minillm.bench.pressure import NEW_TOKENS, Stage, fitting
from minillm.config import EngineConfig, ModelConfig
from minillm.errors import UsageError
from minillm.memory.block_table import blocks_for
from minillm.model.memory import rope_bytes, weight_bytes

LOAD = (Stage(1, 512), Stage(8, 1024), Stage(32, 2048), Stage(64, 4096), Stage(128, 8192))
RESERVE = 1 << 30  # bytes of a slice for the context, kernels and activations
PROFILES: dict[str, dict[str, int]] = {  # GB of each slice
    "a100-40": {"1g.5gb": 5, "1g.10gb": 10, "2g.10gb": 10, "3g.20gb": 20, "4g.20gb": 20, "7g.40gb": 40},
    "a100-80": {"1g.10gb": 10, "1g.20gb": 20, "2g.20gb": 20, "3g.40gb": 40, "4g.40gb": 40, "7g.80gb": 80},
    "h100-80": {"1g.10gb": 10, "1g.20gb": 20, "2g.20gb": 20, "3g.40gb": 40, "4g.40gb": 40, "7g.80gb": 80},
}


def plan_slices(
    config: ModelConfig,
    dtype: torch.dtype,
    gpu: str,
    stages: Sequence[Stage] = LOAD,
    engine: EngineConfig | None = None,
) -> list[dict[str, Any]]:
    """What each slice of a GPU holds of this model, and how each stage of the load runs in it.

    Raises:
        UsageError: there are no profiles for `gpu`.
    """
    if gpu not in PROFILES:
        raise UsageError(f"there are no slices of {gpu!r}", f"known are {', '.join(PROFILES)}")
    engine = engine or EngineConfig(max_num_seqs=max(stage.requests for stage in stages))
    context = config.max_position_embeddings
    fixed = weight_bytes(config, dtype) + rope_bytes(config, context) + RESERVE
    block = engine.block_size * config.kv_bytes_per_token(dtype.itemsize)
    rows = []
    for name, gigabytes in PROFILES[gpu].items():
        num_blocks = max(0, (gigabytes * 10**9 - fixed) // block)
        runs = [_run(stage, num_blocks, engine) for stage in fitting(stages, context)]
        rows.append({"slice": name, "num_blocks": num_blocks, "fixed_bytes": fixed, "stages": runs})
    return rows


def _run(stage: Stage, num_blocks: int, config: EngineConfig) -> dict[str, Any]:
    """One stage over a pool of `num_blocks` blocks; `fits` is false if not even one request does."""
    found: dict[str, Any] = stage._asdict()
    if blocks_for(stage.context + NEW_TOKENS, config.block_size) > num_blocks:
        return found | {"fits": False, "at_once": 0, "preemptions": 0, "steps": 0}
    engine = DryEngine(config, num_blocks)
    for _ in range(stage.requests):
        engine.add(stage.context, NEW_TOKENS)
    while engine.is_busy:
        engine.step()
    counts = {"at_once": engine.most_running, "preemptions": engine.preemptions, "steps": engine.steps}
    return found | {"fits": True, **counts}
