"""Random traffic through random engines: every answer, every block and every metric is checked.

The short form runs a few storms, the long form (marked slow) many. The controls plant a fault in the engine
and require that some storm finds it. `tests/helpers/storm.py` describes a storm and its oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from storm import DRAFTERS, Storms

import minillm.engine.batch as batch_module
import minillm.engine.stepping as stepping_module
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.sequence import Sequence
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.observe.events import Events


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Storms:
    return Storms(tmp_path_factory.mktemp("storms"))


EVENTS = """queue refuse admit share prefill_chunk decode_step sample speculate alloc free copy_on_write
    publish evict preempt resume cancel finish step"""


def test_storms(storms: Storms) -> None:
    """Two storms with each drafter. Together they pass through every state: each kind of event occurs."""
    storms.kinds.clear()
    for number, drafter in enumerate(sorted(set(DRAFTERS))):
        assert storms.faults(number, drafter=drafter) == []
        assert storms.faults(100 + number, drafter=drafter) == []
    assert storms.kinds == set(EVENTS.split())


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1600, 100))
def test_many_storms(storms: Storms, first: int) -> None:
    assert [fault for seed in range(first, first + 100) for fault in storms.faults(seed)] == []


# ---- controls ---------------------------------------------------------------------------------------


@contextmanager
def replaced(owner: Any, name: str, made: Callable[[Any], Any]) -> Iterator[None]:
    """`owner.name` is `made(owner.name)` in the `with` block."""
    own = getattr(owner, name)
    setattr(owner, name, made(own))
    try:
        yield
    finally:
        setattr(owner, name, own)


def publishes_too_early(publish: Any) -> Any:
    """Full blocks are published one block before they are computed."""

    def planted(self: KVCacheManager, sequence: Sequence) -> None:
        computed, size = sequence.num_computed_tokens, self.pool.block_size
        room = len(sequence.block_table.block_ids) * size
        sequence.num_computed_tokens = min(computed + size, room, sequence.num_tokens)
        publish(self, sequence)
        sequence.num_computed_tokens = computed

    return planted


def shares_a_key(draws: Any) -> Any:
    """The rows of a batch draw with the noise key of the first."""

    def planted(sequences: Any, *rest: Any) -> Any:
        made = draws(sequences, *rest)
        made.batch.keys[:] = made.batch.keys[:1] * len(made.batch.keys)
        return made

    return planted


def loses_rejected_blocks(truncate: Any) -> Any:
    """The blocks of rejected tokens leave the table and are not freed."""

    def planted(self: BlockTable, num_tokens: int) -> int:
        self.block_ids = self.block_ids[: blocks_for(num_tokens, self._pool.block_size)]
        return 0

    return planted


def forgets_the_copies(make_input: Any) -> Any:
    """A fork does not get the content of the last block of its prompt."""

    def planted(*args: Any) -> Any:
        made = make_input(*args)
        made.fork_copies = []
        return made

    return planted


def loses(kind: str) -> Callable[[Any], Any]:
    """The first event of this kind does not reach the trace."""

    def without(emit: Any) -> Any:
        lost = list[str]()

        def planted(self: Events, name: str, *args: Any, **data: Any) -> None:
            if name == kind and not lost:
                lost.append(name)
                return
            emit(self, name, *args, **data)

        return planted

    return without


FAULTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "publish": (KVCacheManager, "publish", publishes_too_early),
    "key": (batch_module, "_draws", shares_a_key),
    "truncate": (BlockTable, "truncate", loses_rejected_blocks),
    "copies": (stepping_module, "make_input", forgets_the_copies),
    **{f"no {kind}": (Events, "emit", loses(kind)) for kind in ("admit", "sample", "finish", "free")},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(storms: Storms, fault: str) -> None:
    planted = FAULTS[fault]
    found = (storms.faults(seed, lambda: replaced(*planted)) for seed in range(40))
    assert next((faults for faults in found if faults), []), "no storm found it"
