"""What a failure changes: the error that each request gets, and the blocks after a failed allocation.

A request gets an error object of its own, without the frames, causes and notes of the exception that a part
raised. If requests of several tenants were in the step, it gets nothing of that exception but its type.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from storm import book_faults

from minillm import LLM, SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.outputs import RequestOutput
from minillm.engine.sequence import Sequence
from minillm.errors import KVCapacityError, OutOfBlocks, PartError
from minillm.memory.block_pool import BlockPool
from minillm.memory.kv_cache import KVCache
from minillm.observe.events import Event, Events
from minillm.text.detokenizer import NullDetokenizer
from minillm.worker.decode import decode

SECRET = "tenant-of-another"


class Leaky(Exception):
    """An exception that holds what a part has seen: in its message, an attribute, a note and its cause."""

    def __init__(self, seen: object) -> None:
        super().__init__(f"failed at {SECRET}")
        self.seen = seen
        self.add_note(SECRET)


def leaks(runner: Any, rows: Any) -> Any:
    try:
        raise KeyError(SECRET)
    except KeyError as cause:
        raise Leaky(rows) from cause


def failed(folder: Path, parts: dict[str, Any], tenants: list[str | None]) -> list[RequestOutput]:
    """Run one request for each tenant until all have ended; the caller of `step` gets the exceptions."""
    engine = tiny.load(folder, parts=parts).engine
    for i, tenant in enumerate(tenants):
        engine.add_request([5 + i], SamplingParams(max_tokens=4, ignore_eos=True, seed=i), tenant)
    return finished(engine)


def finished(engine: Engine) -> list[RequestOutput]:
    """Step until every request has ended; ignore what the parts raise."""
    outputs: dict[str, RequestOutput] = {}
    for _ in range(99):
        try:
            outputs |= {output.request_id: output for output in engine.step()}
        except (Leaky, ValueError):
            continue
    assert book_faults(engine) == [] and all(output.finished for output in outputs.values())
    return list(outputs.values())


def reachable(error: BaseException) -> list[object]:
    """Everything that the error's receiver can get from it."""
    found = [error.__traceback__, error.__cause__, error.__context__, *getattr(error, "__notes__", ())]
    return [x for x in found if x is not None] + [*error.args, *error.__dict__.values()]


@pytest.mark.parametrize("part", ["decode_loop", "prefill_loop", "sampler", "block_pool"])
def test_an_error_holds_nothing_of_another_tenant(folder: Path, part: str) -> None:
    def broken_pool(num_blocks: int, block_size: int) -> BlockPool:
        pools.append(block_size)
        if len(pools) > 1:  # the pool of the recovery
            leaks(None, [SECRET])
        return type("Broken", (BlockPool,), {"allocate": lambda self, count=1: leaks(None, [SECRET])})(
            num_blocks, block_size
        )

    pools = list[int]()
    made = broken_pool if part == "block_pool" else lambda a, b: leaks(a, b)
    outputs = failed(folder, {part: made}, ["a", SECRET, None])
    errors = [output.error for output in outputs]
    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert isinstance(error, PartError) and "Leaky" in str(error)
        assert SECRET not in repr(reachable(error)) and SECRET not in str(error)


def test_within_one_tenant_the_error_is_kept(folder: Path) -> None:
    """The control: what the test above looks for is in the part's own exception."""
    outputs = failed(folder, {"decode_loop": leaks}, ["a", "a"])
    errors = [output.error for output in outputs]
    assert errors[0] is not errors[1] and all(isinstance(error, Leaky) for error in errors)
    for error in errors:
        assert error is not None and SECRET in str(error)
        assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_an_error_does_not_overwrite_a_sample_that_had_finished(folder: Path) -> None:
    params = SamplingParams(max_tokens=9, temperature=1.0, seed=1, ignore_eos=True, n=2)
    first, second = tiny.load(folder).generate([5, 6], params)[0].outputs
    place = next(i for i in range(1, 8) if first.token_ids[i] not in second.token_ids)

    def breaks(runner: Any, rows: Any) -> torch.Tensor:
        if len(rows) == 1:  # the first sample has finished
            raise ValueError
        return decode(runner, rows)

    llm = tiny.load(folder, parts={"decode_loop": breaks})
    stopping = SamplingParams(**(params.to_dict() | {"stop_token_ids": (first.token_ids[place],)}))
    llm.engine.add_request([5, 6], stopping)
    (last,) = finished(llm.engine)
    assert isinstance(last.error, ValueError)
    assert [c.finish_reason for c in last.outputs] == ["stop", "error"]
    assert last.outputs[0].token_ids == first.token_ids[: place + 1]
    assert last.outputs[1].token_ids == second.token_ids[: place + 1] and tiny.all_free(llm)


# ---- failed allocations ------------------------------------------------------------------------------


class Faulty(BlockPool):
    """A pool that raises at call number `at` of `allocate` or `share`."""

    at, calls = -1, 0

    def allocate(self, count: int = 1) -> list[int]:
        self._count()
        return super().allocate(count)

    def share(self, block_ids: Any) -> None:
        self._count()
        super().share(block_ids)

    def _count(self) -> None:
        number, self.calls = self.calls, self.calls + 1
        if number == self.at:
            raise MemoryError


def a_sequence(memory: KVCacheManager, prompt: list[int]) -> Sequence:
    made = Sequence("r", 0, prompt, SamplingParams(), 0, 9, None, NullDetokenizer())  # type: ignore[arg-type]
    memory.open([made])
    return made


def state(memory: KVCacheManager, sequences: list[Sequence]) -> object:
    """All that an allocation can change."""
    pool, cache = memory.pool, memory.cache
    return (
        [pool.ref_count(i) for i in range(pool.num_blocks)],
        (pool.num_free, memory.num_unused, cache.num_blocks if cache else 0),
        [(list(s.block_table.block_ids), list(s.draft.branch_blocks)) for s in sequences],
        [(s.num_computed_tokens, s.cached.num_blocks, s.draft.num_computed_tokens) for s in sequences],
    )


def branches(memory: KVCacheManager, first: Sequence, second: Sequence) -> None:
    memory.allocate_branches(first, 21, 4)


def fork(memory: KVCacheManager, first: Sequence, second: Sequence) -> None:
    memory.fork(first, second, 10)


def slots(memory: KVCacheManager, first: Sequence, second: Sequence) -> None:
    memory.allocate_slots(first, 30)


def start(memory: KVCacheManager, first: Sequence, second: Sequence) -> None:
    memory.start_from(second, memory.match(second))


@pytest.mark.parametrize(("work", "calls"), [(branches, 4), (fork, 2), (slots, 1), (start, 1)])
def test_an_allocation_that_fails_changes_nothing(work: Callable[..., None], calls: int) -> None:
    """It fails at each of its allocations; the events balance, and the next attempt succeeds."""
    for at in range(calls + 1):
        pool, events, trace = Faulty(30, 4), Events(), list[Event]()
        memory = KVCacheManager(pool, "kv", events)
        first, second = a_sequence(memory, list(range(10))), a_sequence(memory, list(range(10)))
        memory.allocate_slots(first, 10)
        first.num_computed_tokens = 10
        memory.publish(first)
        events.listeners.append(trace.append)
        before, pool.at = state(memory, [first, second]), pool.calls + at
        if at == calls:  # the control: `calls` is the number of its allocations
            work(memory, first, second)
            assert state(memory, [first, second]) != before
            continue
        with pytest.raises(MemoryError):
            work(memory, first, second)
        events.deliver()
        signs = {"alloc": 1, "share": 1, "free": -1}
        assert state(memory, [first, second]) == before, at
        assert sum(signs.get(event.kind, 0) * event.data.get("blocks", 0) for event in trace) == 0
        work(memory, first, second)


def test_an_allocation_that_cannot_succeed_evicts_nothing(llm: LLM) -> None:
    """A failed `logits` call must not empty the prefix cache."""
    llm.generate([list(range(20, 60)), list(range(80, 120))], SamplingParams(max_tokens=1))
    before = llm.engine.stats()
    assert before["cached_blocks"] > 1
    memory = llm.engine.memory
    sequence = a_sequence(memory, [1])
    with pytest.raises(OutOfBlocks):
        memory.allocate_slots(sequence, (before["num_blocks"] + 1) * 16)
    assert llm.engine.stats() == before
    memory.allocate_slots(sequence, before["num_blocks"] * 16)
    assert llm.engine.stats()["cached_blocks"] == 0, "the control: one that can succeed evicts"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError(), MemoryError()],
)
def test_kv_tensors_that_cannot_be_allocated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    config = tiny.load(folder).engine.model.config

    def empty(*args: Any, **options: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr("minillm.memory.kv_cache.torch.empty", empty)
    with pytest.raises(KVCapacityError, match=r"64 KV blocks need 256\.0 KiB.*lower kv_memory") as caught:
        KVCache.allocate(config, 64, 16, torch.float32, torch.device("cpu"))
    assert caught.value.__cause__ is None
