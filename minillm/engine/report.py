"""Fields of the events `step` and `finish` (`observe/events.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as List
from typing import Any

from minillm.engine.keyed import keyed
from minillm.engine.prompt import ids_digest
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan


def finish_fields(sequence: Sequence) -> dict[str, Any]:
    """Which sequence ended, why, and the keyed digest of its answer."""
    answer = keyed(ids_digest(sequence.output_token_ids), sequence.tenant)
    return {"index": sequence.index, "reason": sequence.finish_reason, "answer": answer}


def step_fields(
    plan: StepPlan, running: List[Sequence], stats: Mapping[str, int], block_size: int
) -> dict[str, Any]:
    """Count the rows of a step and the memory used at its end. `stats`: the result of `Engine.stats`."""
    slots = sum(len(s.block_table.block_ids) * block_size for s in running)
    return {
        "prefill_tokens": plan.num_rows - len(plan.decode),
        "decode_rows": len(plan.decode),
        "waiting": stats["waiting"],
        "running": len(running),
        "used": stats["used_blocks"],
        "cached": stats["cached_blocks"],
        "free": stats["free_blocks"] - stats["cached_blocks"],
        "waste": slots - sum(s.num_computed_tokens for s in running),
    }
