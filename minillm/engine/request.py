"""A submitted request: n completions of one prompt.

request   prompt [ t0 t1 .. tn ]     sequence 0 is prefilled; the others fork from it at the end of the
          +-- sequence 0  ...        prompt and share the prompt's full blocks
          +-- sequence 1  ...
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field

from minillm.config import SamplingParams
from minillm.engine.sequence import FinishReason, Sequence
from minillm.memory.block_table import blocks_for
from minillm.ops.sampling import mix64

_MASK = (1 << 64) - 1


@dataclass(eq=False)
class Request:
    """A submitted request and its sequences."""

    request_id: str
    sequences: list[Sequence]
    prompt_digest: str = field(default="", repr=False)  # of the text or ids that were given (`prompt.py`)
    is_scheduled: bool = False  # it has been given to the scheduler

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters, the same for all n sequences."""
        return self.sequences[0].params

    @property
    def arrival(self) -> float:
        """The time it was submitted."""
        return self.sequences[0].arrival

    @property
    def admitted(self) -> float | None:
        """The time it first left the queue, or None."""
        return self.sequences[0].admitted

    @property
    def latest(self) -> float:
        """The time of its newest token or, if later, of a sequence's end; without either, its arrival."""
        tokens = [s.token_times[-1] for s in self.sequences if s.token_times]
        ends = [s.ended for s in self.sequences if s.ended is not None]
        return max(tokens + ends, default=self.arrival)

    @property
    def error(self) -> Exception | None:
        """The error of the first sequence that ended with one, or None."""
        return next((s.error for s in self.sequences if s.error is not None), None)

    @property
    def is_finished(self) -> bool:
        """Whether every sequence has ended."""
        return all(s.finish_reason for s in self.sequences)

    @property
    def num_block_references(self) -> int:
        """The number of blocks in the tables of all sequences."""
        if len(self.sequences) == 1:  # this is asked in every step, and a loop is slow
            return self.sequences[0].num_block_references
        return sum(s.num_block_references for s in self.sequences)

    @property
    def deadline(self) -> float | None:
        """The time after which the engine ends the request, or None."""
        return None if self.params.deadline is None else self.arrival + self.params.deadline

    @property
    def tenant(self) -> str | None:
        """The tenant that sent it."""
        return self.sequences[0].tenant

    def submit(self, order: int, number: int, engine_seed: int) -> None:
        """Enter the queue, as request `order` of the engine and request `number` of its tenant.

        The id is random: it tells nothing, and nobody can guess another one (`registry.py`).
        """
        self.request_id, arrival = f"req-{secrets.token_hex(16)}", time.perf_counter()
        seed = self.params.seed
        if seed is None:
            seed = derived_seed(engine_seed, self.tenant, number)
        for sequence in self.sequences:
            sequence.request_id, sequence.order = self.request_id, order
            sequence.seed, sequence.arrival = seed, arrival

    def open_sequences(self) -> list[Sequence]:
        """The sequences that have not ended."""
        return [s for s in self.sequences if not s.finish_reason]

    def finish(self, reason: FinishReason) -> None:
        """End every open sequence with `reason`."""
        for sequence in self.open_sequences():
            sequence.end(reason)

    def fail(self, error: BaseException) -> None:
        """End every open sequence with `error`."""
        for sequence in self.open_sequences():
            sequence.fail(error)


def derived_seed(engine_seed: int, tenant: str | None, number: int) -> int:
    """The seed of a request that gives none: a whole number of 32 bits, from 0.

    It depends on the engine's seed, the tenant and `number`, that of the tenant's own earlier requests. A
    number counted over all tenants would tell each how much the others send. Two questions that differ in
    one of the three have different seeds, but for chance; None and "" are two tenants. Equal questions have
    equal seeds, in every process. The work does not grow with `number`.
    """
    start = mix64(engine_seed & _MASK)
    if tenant is not None:
        start ^= int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:8], "little")
    return mix64((start + number + 1) & _MASK) >> 32


def group_blocks(prompt_len: int, total_len: int, n: int, block_size: int) -> int:
    """Blocks for n sequences of `total_len` tokens each, prompt included, with a common prompt.

    They share the blocks that the prompt fills. Each has its own copy of a block that the prompt
    fills in part, because it continues there.

    The work may grow with the number of blocks and with n, but not with the number of tokens.
    """
    shared = prompt_len // block_size
    return shared + n * (blocks_for(total_len, block_size) - shared)
