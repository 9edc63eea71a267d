"""What the engine tells about itself: its counts, and the fields of the events `step` and `finish`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from enum import Enum

from minillm.config.tenants import check_tenant
from minillm.engine.batch import PlannedStep
from minillm.engine.keyed import keyed, tenant_label
from minillm.engine.prompt import ids_digest
from minillm.engine.registry import Registry
from minillm.engine.request import Request
from minillm.engine.sequence import Sequence
from minillm.engine.tenant_memory import KVMemory
from minillm.errors import MinillmError
from minillm.observe.events import Events


class Anyone(Enum):
    """Stands for every tenant, where `None` is a tenant too."""

    ANYONE = "anyone"


ANYONE = Anyone.ANYONE


def stats(memory: KVMemory, registry: Registry, tenant: str | Anyone | None) -> dict[str, int]:
    """Count requests and blocks: all, or a tenant's own.

    Raises:
        UsageError: `tenant` is not text or None.
    """
    if isinstance(tenant, Anyone):
        return engine_stats(memory, *registry.count())
    check_tenant(tenant)
    return tenant_stats(memory, registry.requests(), tenant)


def engine_stats(memory: KVMemory, waiting: int, running: int) -> dict[str, int]:
    """Count all requests and blocks.

    `waiting`: requests that have not started. `running`: requests that have started, including preempted
    ones. `num_blocks` = `used_blocks` + `free_blocks`. `cached_blocks`: the free blocks whose content a
    prefix cache can still find.
    """
    available, num_blocks = memory.available, memory.pool.num_blocks
    return {
        "waiting": waiting,
        "running": running,
        "num_blocks": num_blocks,
        "used_blocks": num_blocks - available,
        "free_blocks": available,
        "cached_blocks": memory.num_unused,
    }


def tenant_stats(memory: KVMemory, requests: List[Request], tenant: str | None) -> dict[str, int]:
    """Count a tenant's own requests and blocks. `requests`: all live ones.

    `num_blocks` are the blocks it is guaranteed, and `free_blocks` those of them that no sequence uses. So
    nothing here depends on other tenants.
    """
    own = [request for request in requests if request.tenant == tenant]
    running = sum(request.admitted is not None for request in own)
    used = {block for r in own for s in r.sequences for block in s.block_table.block_ids}
    guaranteed = memory.guaranteed_blocks(tenant)
    return {
        "waiting": len(own) - running,
        "running": running,
        "num_blocks": guaranteed,
        "used_blocks": len(used),
        "free_blocks": max(0, guaranteed - len(used)),
        "cached_blocks": memory.unused_of(tenant),
    }


def end(events: Events, sequence: Sequence, now: float) -> None:
    """Emit `finish`: which sequence ended, why, and the keyed digest of its answer.

    If an interrupt makes the engine emit it twice, both events have the same time.
    """
    sequence.ended = now if sequence.ended is None else sequence.ended
    if events.listeners:
        answer = keyed(ids_digest(sequence.output_token_ids), sequence.tenant)
        fields = {"index": sequence.index, "reason": sequence.finish_reason, "answer": answer}
        events.emit("finish", sequence.request_id, at=sequence.ended, **fields)
    sequence.is_released = True


def refusal(events: Events, error: MinillmError, tenant: object) -> None:
    """Emit `refuse`: the type of the error, and whose request it was."""
    label = tenant_label(tenant) if tenant is None or isinstance(tenant, str) else ""
    events.emit("refuse", reason=type(error).__name__, tenant=label)


def step(
    events: Events,
    done: PlannedStep,
    running: List[Sequence],
    counted: Callable[[], Mapping[str, int]],
    block_size: int,
    started: float,
) -> None:
    """Emit the event that ends a step: the rows of the step, and the memory used at its end.

    In a recorded run `blocks` follows, which says whose memory it is.
    """
    if not events.listeners:
        return
    plan, counts, blocks, computed, context = done.plan, counted(), 0, 0, 0
    for sequence in running:  # plain loops: this runs in every step
        blocks += len(sequence.block_table.block_ids)
        computed += sequence.num_computed_tokens
    for sequence in plan.decode:  # a sequence that has ended and was freed has 0 computed tokens
        context += sequence.num_computed_tokens or sequence.num_tokens - 1
    events.emit(
        "step",
        seconds=time.perf_counter() - started,
        prefill_tokens=plan.num_rows - len(plan.decode),
        decode_rows=len(plan.decode),
        context=context,
        phases=dict(done.phases),
        waiting=counts["waiting"],
        held=dict(plan.held),
        running=len(running),
        used=counts["used_blocks"],
        cached=counts["cached_blocks"],
        free=counts["free_blocks"] - counts["cached_blocks"],
        slots=blocks * block_size,
        waste=blocks * block_size - computed,
    )
    if events.detail is not None:
        events.detail(running)
