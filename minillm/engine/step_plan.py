"""The plan of a step: what the scheduler decides, and what the rest of the engine carries out.

    decode     [ a b ]                  one row each: the newest token
    prefill    [ c 8-16, d 0-3 ]        chunks of known tokens
    blocks     { a: 1, b: 0, c: 2 }     blocks that these sequences will allocate
    preempted  [ e ]                    they lost their blocks to make room

A plan counts blocks but allocates none. So the scheduler can still drop a sequence from the plan, and nothing
has to be undone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from minillm.engine.sequence import Sequence

# What a waiting sequence lacks: KV blocks, a place among `max_num_seqs`, tokens of the step, or room in its
# tenant's `max_blocks`.
Held = Literal["blocks", "seqs", "tokens", "quota"]


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `end` (exclusive) of a sequence, to be computed in one step.

    `start` is the sequence's `num_computed_tokens`. Positions count prompt and output tokens together.
    """

    sequence: Sequence
    start: int
    end: int


@dataclass(frozen=True)
class LanePlan:
    """What the plan leaves for drafts in one lane (`tenant_scheduler.py`).

    `decode`: the lane's decoding sequences. `rows` and `blocks`: what the plan has not counted. In a reserved
    lane the depth of drafts must not depend on what other tenants' drafts have brought.
    """

    decode: list[Sequence]
    rows: int
    blocks: int
    is_reserved: bool = False


@dataclass
class StepPlan:
    """What one step does: a prefill batch, a decode batch, or both.

    `prefill`: a chunk each of some sequences in their prefill. `decode`: sequences after their prefill, each
    gets one token. `blocks`: the number of blocks that each planned sequence will allocate, which may be 0;
    `num_blocks` is their sum. They are counted here, not allocated. `preempted`: the sequences that were
    preempted while the plan was made; they are not in the plan. `held`: the number of sequences that wait, by
    what the first of them lacks. `lanes`: empty without tenant limits.
    """

    prefill: list[Chunk] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)
    blocks: dict[Sequence, int] = field(default_factory=dict)
    num_blocks: int = 0
    preempted: list[Sequence] = field(default_factory=list)
    held: dict[Held, int] = field(default_factory=dict)
    lanes: list[LanePlan] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Tokens that the model computes in the step."""
        return len(self.decode) + sum(chunk.end - chunk.start for chunk in self.prefill)

    @property
    def sequences(self) -> list[Sequence]:
        """All sequences of the step."""
        return [*self.decode, *(chunk.sequence for chunk in self.prefill)]

    def take(self, sequence: Sequence, blocks: int) -> None:
        """Count `blocks` blocks for a sequence."""
        self.blocks[sequence] = blocks
        self.num_blocks += blocks

    def add(self, other: StepPlan) -> None:
        """Add the plan of other sequences."""
        self.prefill += other.prefill
        self.decode += other.decode
        self.blocks |= other.blocks
        self.num_blocks += other.num_blocks
        self.preempted += other.preempted
        for reason, count in other.held.items():
            self.held[reason] = self.held.get(reason, 0) + count

    def drop(self, sequence: Sequence) -> None:
        """Remove a sequence and its blocks from the plan."""
        self.num_blocks -= self.blocks.pop(sequence, 0)
        self.decode = [r for r in self.decode if r is not sequence]
        self.prefill = [chunk for chunk in self.prefill if chunk.sequence is not sequence]
