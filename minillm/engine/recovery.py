"""What happens to the requests of a step that failed, by an exception or by an interrupt.

    interrupt while the worker ran      put_back      the step's sequences wait again and keep their tokens
    exception while the worker ran      give_up       the step's requests end with the error
    failure while block tables changed  start_again   the pool is replaced and all sequences wait again; those
                                                      that caused the failure, or whose own state is half
                                                      changed, end with an error

A sequence that waits again recomputes its tokens, with the same bits (contract C2), and samples the same next
token (contract C3). Only time is lost, and after `start_again` the cached prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List

from minillm.engine.batch import PlannedStep
from minillm.engine.request import Request
from minillm.engine.sequence import Sequence
from minillm.engine.tenant_memory import KVMemory
from minillm.engine.tenant_scheduler import AnyScheduler
from minillm.errors import PartError, StepInterrupted, own_copy
from minillm.memory.block_pool import BlockPool
from minillm.observe.events import Events


def put_back(step: PlannedStep, scheduler: AnyScheduler, memory: KVMemory, events: Events) -> None:
    """Preempt every sequence of the step. Forks that had not started wait for their prompt again."""
    for fork in step.forks:
        memory.free(fork)
    for sequence in step.plan.sequences:
        events.emit("preempt", sequence.request_id, tokens=sequence.num_computed_tokens)
        sequence.num_preemptions += 1
        memory.free(sequence)
        scheduler.requeue(sequence)


def give_up(live: List[Request], affected: List[Sequence], error: Exception) -> None:
    """End the requests of the affected sequences with `error`. Each request gets a copy of its own."""
    ids = {sequence.request_id for sequence in affected}
    shown = _without_names(error, {sequence.tenant for sequence in affected})
    for request in live:
        if request.request_id in ids:
            request.fail(shown)


def start_again(
    live: List[Request],
    affected: List[Sequence],
    error: BaseException | None,
    memory: KVMemory,
    pool: BlockPool,
    make_scheduler: Callable[[], AnyScheduler],
) -> AnyScheduler:
    """Queue every live sequence again, over an empty pool; return the new scheduler.

    If `error` is an `Exception`, the requests of the affected sequences end with it. After an interrupt only
    the sequences whose state was half changed end, with `StepInterrupted`.
    """
    sequences = [sequence for request in live for sequence in request.sequences]
    started = {s for s in sequences if s.block_table.block_ids and (s.admitted is not None or s.index)}
    memory.reset(pool, sequences)
    for sequence in sequences:
        if sequence.is_changing:
            sequence.fail(_interrupted(error))
    if isinstance(error, Exception):
        give_up(live, affected, error)
    scheduler = make_scheduler()
    for request in live:
        request.is_scheduled = True
        waiting_forks = request.sequences[0].forks
        for sequence in request.open_sequences():
            sequence.num_preemptions += sequence in started
            if sequence not in waiting_forks:
                scheduler.requeue(sequence)
    return scheduler


def for_callers(error: Exception, tenants: set[str | None]) -> Exception:
    """What a caller gets of an error in a step, if requests of these tenants were live.

    With several tenants it has no traceback: the frames hold the token ids of the whole step.
    """
    return own_copy(_without_names(error, tenants)) if len(tenants) > 1 else error


def _without_names(error: Exception, tenants: set[str | None]) -> Exception:
    """The error that requests of these tenants may get.

    A part sees the rows of the whole step, so its message and attributes may hold another tenant's data. The
    engine's own `PartError` names types and shapes only.
    """
    if len(tenants) <= 1 or isinstance(error, PartError):
        return error
    return PartError(
        f"a part raised {type(error).__name__} in a step with requests of several tenants",
        "send the request again; the caller of `step` gets the exception itself",
    )


def _interrupted(error: BaseException | None) -> Exception:
    if isinstance(error, Exception):
        return error
    return StepInterrupted(
        "the step was interrupted while it changed this request",
        "the text so far is kept; send the request again for the rest",
    )
