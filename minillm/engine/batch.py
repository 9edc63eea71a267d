"""Turns a plan into the worker's input: allocates the blocks, then describes the step as plain data.

    StepPlan --reserve--> block tables with room --propose--> drafts --make_input--> StepInput

`reserve` makes every change to a block table before anything is computed. The scheduler has counted the
blocks, so the plan fits. A failure here is a fault of the scheduler or of a replaced part, not of a request.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, field

from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
from minillm.engine.tenant_memory import KVMemory
from minillm.ops.sampling import ACCEPT, REPLACE, SamplingBatch
from minillm.speculation.lookahead import LookaheadBudget
from minillm.speculation.proposal import Lookahead, Proposal
from minillm.worker.step import Copy, DecodeRow, DraftRows, Draws, PrefillChunk, StepInput


@dataclass
class PlannedStep:
    """A plan and what has been prepared for it so far.

    `starting`: the sequences that get their first token in this step. These are the sequences whose prefill
    ends, each followed by its forks. `lookaheads` and `proposals`: one entry per decoding sequence, or empty
    if the step is not speculative. `phases`: the seconds that each phase took (`stepping.py`).
    """

    plan: StepPlan
    starting: list[Sequence] = field(default_factory=list)
    fork_copies: list[Copy] = field(default_factory=list)
    lookaheads: list[Lookahead] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)
    draft_seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def is_speculative(self) -> bool:
        """Whether the step has at least one draft."""
        return any(proposal.branches for proposal in self.proposals)

    @property
    def forks(self) -> list[Sequence]:
        """The forks that got blocks in this step."""
        return [fork for sequence in self.starting for fork in sequence.forks]


def reserve(step: PlannedStep, memory: KVMemory, budgets: List[LookaheadBudget]) -> None:
    """Allocate every block the step needs. `budgets`: one entry per decoding sequence, or empty."""
    plan = step.plan
    memory.make_room(plan.num_blocks + sum(leave.blocks for leave in budgets))
    for chunk in plan.prefill:
        memory.allocate_slots(chunk.sequence, chunk.end)
        if chunk.end == chunk.sequence.num_tokens:
            _reserve_start(step, chunk.sequence, memory)
    if any(leave.depth for leave in budgets):
        for sequence, leave in zip(plan.decode, budgets, strict=True):
            tables = memory.allocate_branches(sequence, sequence.num_tokens + leave.depth, leave.branches)
            step.lookaheads.append(Lookahead(sequence, leave.depth, tables, leave.group))
        return
    size = memory.pool.block_size
    for sequence in plan.decode:
        if len(sequence.block_table.block_ids) * size < sequence.num_tokens:  # once in `size` steps
            memory.allocate_slots(sequence, sequence.num_tokens)


def _reserve_start(step: PlannedStep, sequence: Sequence, memory: KVMemory) -> None:
    step.starting.append(sequence)
    for fork in sequence.forks:
        copy = memory.fork(sequence, fork, sequence.num_tokens)
        step.starting.append(fork)
        if copy:
            step.fork_copies.append(copy)


def make_input(step: PlannedStep, block_size: int, num_token_ids: int, rejects: bool) -> StepInput:
    """Describe the step as plain data. `rejects`: drafts are verified by rejection sampling."""
    plan = step.plan
    made = StepInput(fork_copies=step.fork_copies, num_token_ids=num_token_ids)
    rows = list[int]()  # for each draw, its row in the logits of the prefill pass
    for i, chunk in enumerate(plan.prefill):
        tokens = chunk.sequence.tokens(chunk.start, chunk.end)
        table, offset = chunk.sequence.block_table.block_ids, chunk.sequence.rope_offset
        made.prefill.append(PrefillChunk(tokens, chunk.start, table, offset))
        if chunk.end == chunk.sequence.num_tokens:
            rows += [i] * (1 + len(chunk.sequence.forks))
    if step.starting:
        made.prefill_draws = _draws(step.starting, rows, num_token_ids)
    if step.is_speculative:
        pairs = zip(plan.decode, step.lookaheads, step.proposals, strict=True)
        made.verify = [_draft_rows(*pair, rejects) for pair in pairs]
        made.branch_copies = _branch_copies(made.verify, block_size)
    elif plan.decode:
        made.decode = [
            DecodeRow(s.output_token_ids[-1], s.num_computed_tokens, s.block_table.block_ids, s.rope_offset)
            for s in plan.decode
        ]
        made.decode_draws = _draws(plan.decode, list(range(len(plan.decode))), num_token_ids)
    return made


def _draws(sequences: List[Sequence], rows: list[int], num_token_ids: int) -> Draws:
    batch = SamplingBatch(
        params=[s.filters for s in sequences],
        keys=[s.noise_key for s in sequences],
        seen=[s.seen_token_ids for s in sequences],
        num_token_ids=num_token_ids,
    )
    return Draws(rows, batch, [s.params.logprobs for s in sequences])


def _draft_rows(sequence: Sequence, lookahead: Lookahead, proposal: Proposal, rejects: bool) -> DraftRows:
    branches = proposal.branches
    longest = max(map(len, branches), default=0)
    rows = DraftRows(
        token_id=sequence.newest_token_id,
        position=sequence.num_computed_tokens,
        block_tables=lookahead.block_tables[: max(1, len(branches))],
        branches=branches,
        filters=sequence.filters,
        keys=sequence.noise_keys(longest + 1),
        seen=sequence.seen_token_ids,
        top=sequence.params.logprobs,
        rope_offset=sequence.rope_offset,
    )
    if rejects:
        rows.probs = proposal.probs
        rows.accept_keys = sequence.noise_keys(longest, ACCEPT)
        (rows.replace_key,) = sequence.noise_keys(1, REPLACE)
    return rows


def _branch_copies(verify: List[DraftRows], block_size: int) -> list[Copy]:
    """Copies of each sequence's last, partly full block: one for every branch after the first."""
    copies = list[Copy]()
    for rows in verify:
        own, *others = rows.block_tables
        block, filled = divmod(rows.position, block_size)
        if filled:
            copies += [(own[block], table[block]) for table in others]
    return copies
