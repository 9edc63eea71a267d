"""The worker: runs a step on one device. `StepInput -> Worker.execute -> StepOutput`.

    prefill pass --> finite? --> fork copies --> sampling
    decode pass  --> finite? --> sampling                  or, if anything was drafted in this step,
    branch copies --> verification pass --> verification

Logits are checked before they are used. A row that holds NaN or infinity is never sampled from. The other
rows are not affected: rows of a batch share no arithmetic.

The worker gets the loops, the sampler and the verification as arguments, so a reader can replace them. The
worker checks the result of a replaced loop. The other parts are already checked (`engine/checked.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from minillm.errors import PartError
from minillm.ops.contract import Ops
from minillm.ops.sampling import SamplingBatch
from minillm.worker.decode import decode
from minillm.worker.prefill import prefill
from minillm.worker.runner import ModelRunner
from minillm.worker.step import (
    DecodeRow,
    DraftRows,
    Drawn,
    Draws,
    PrefillChunk,
    SequenceRows,
    StepInput,
    StepOutput,
    VerifyResult,
)


class Sampler(Protocol):
    """Samples one token id for each row of logits [rows, vocab_size]; returns int64 [rows]."""

    def __call__(self, logits: Tensor, batch: SamplingBatch, /) -> Tensor: ...


class PrefillLoop(Protocol):
    """Computes the chunks; returns the logits after each chunk's last token [chunks, vocab_size]."""

    def __call__(self, runner: ModelRunner, chunks: Sequence[PrefillChunk], /) -> Tensor: ...


class DecodeLoop(Protocol):
    """Computes one row per sequence; returns the logits of each next token [rows, vocab_size]."""

    def __call__(self, runner: ModelRunner, rows: Sequence[DecodeRow], /) -> Tensor: ...


class LogitsWatch(Protocol):
    """Sees the logits of each pass whose rows are drawn from (`engine/watch.py`)."""

    def __call__(self, name: Literal["prefill", "decode", "verify"], logits: Tensor, /) -> None:
        """`logits` [num_draws, vocab_size], or in a verification pass of all rows; used only in the call."""


class Verification(Protocol):
    """Decides which draft tokens are accepted (`minillm/speculation/verification.py`)."""

    def verify(self, rows: Sequence[DraftRows], logits: Tensor, num_token_ids: int) -> list[VerifyResult]:
        """Return one result per sequence.

        `logits` [num_rows, vocab_size]: the rows of all branches, one branch after the other.
        """

    def draws(self, rows: Sequence[DraftRows], num_token_ids: int) -> SamplingBatch | None:
        """The tokens to draw, one per row, for `decide`; None: only `verify` can verify these rows."""

    def decide(
        self, rows: Sequence[DraftRows], sampled: Tensor, healthy: Sequence[bool], logits: Tensor
    ) -> list[VerifyResult]:
        """Like `verify`, with the tokens that were drawn and the rows whose logits are finite."""


@dataclass(frozen=True)
class WorkerParts:
    """The replaceable parts of a worker. `sampler`: None means the backend's own."""

    prefill_loop: PrefillLoop = prefill
    decode_loop: DecodeLoop = decode
    sampler: Sampler | None = None
    verification: Verification | None = None


class Worker:
    """Runs steps with the model and the cache of `runner`."""

    def __init__(self, runner: ModelRunner, parts: WorkerParts | None = None) -> None:
        parts = parts or WorkerParts()
        self.runner, self._ops = runner, runner.decoder.ops
        self.watch: LogitsWatch | None = None
        self._prefill_loop, self._decode_loop = parts.prefill_loop, parts.decode_loop
        self._verification = parts.verification
        self._sample: Sampler = parts.sampler or self._ops.sample
        # With the default parts a fused backend runs a pass, the finiteness check and sampling in one call.
        self._samples_in_pass = runner.is_fused and parts.sampler is None
        self._prefills_in_one_call = self._samples_in_pass and parts.prefill_loop is prefill
        self._decodes_in_one_call = self._samples_in_pass and parts.decode_loop is decode

    @property
    def ops(self) -> Ops:
        """The backend."""
        return self._ops

    @torch.inference_mode()  # once per step: entering it for every pass costs time
    def execute(self, step: StepInput) -> StepOutput:
        """Run a step.

        Raises:
            PartError: a replaced part returned something that cannot be used.
            Exception: what a part raises. Only cache slots of this step have been written.
        """
        output = StepOutput()
        if step.prefill:
            output.prefill = self._run_prefill(step)
        started = time.perf_counter()
        if step.verify:
            output.verify = self._run_verify(step)
            output.num_rows = sum(len(row) + 1 for seq in step.verify for row in seq.branches or [[]])
        elif step.decode and step.decode_draws:
            output.decode = self._run_decode(step.decode, step.decode_draws)
            output.num_rows = len(step.decode)
        output.decode_seconds = time.perf_counter() - started
        return output

    @torch.inference_mode()
    def logits(self, rows: SequenceRows) -> Tensor:
        """Compute a chunk; return the logits after each token: float32 [num_tokens, vocab_size], on CPU."""
        return self.runner.all_logits([rows]).float().cpu()

    def _run_prefill(self, step: StepInput) -> Drawn:
        """Compute the chunks, then sample the first tokens of the sequences whose prefill ends."""
        draws = step.prefill_draws
        if self._prefills_in_one_call and draws is not None:
            rows = [SequenceRows(c.token_ids, c.start, c.block_table, c.rope_offset) for c in step.prefill]
            picked = None if draws.rows == list(range(len(rows))) else draws.rows
            tokens, flags, logits = self.runner.step(rows, draws.batch, draw_rows=picked)
            self.runner.copy_blocks(step.fork_copies)
            if self.watch is not None:
                self.watch("prefill", logits[draws.rows])
            return self._report(logits, draws, flags.tolist(), tokens)
        logits = self._prefill_loop(self.runner, step.prefill)
        self._check("prefill_loop", logits, len(step.prefill))
        finite = self._ops.finite_rows(logits).tolist()
        self.runner.copy_blocks(step.fork_copies)
        if self.watch is not None and step.prefill_draws is not None:
            self.watch("prefill", logits[step.prefill_draws.rows])
        return self._draw(logits, step.prefill_draws, finite)

    def _run_decode(self, rows: list[DecodeRow], draws: Draws) -> Drawn:
        """Compute one row per sequence and sample its next token."""
        if self._decodes_in_one_call:
            batch = [
                SequenceRows((row.token_id,), row.position, row.block_table, row.rope_offset) for row in rows
            ]
            tokens, finite, logits = self.runner.step(batch, draws.batch)
            if self.watch is not None:
                self.watch("decode", logits)
            return self._report(logits, draws, finite.tolist(), tokens)
        logits = self._decode_loop(self.runner, rows)
        self._check("decode_loop", logits, len(rows))
        if self.watch is not None:
            self.watch("decode", logits)
        return self._draw(logits, draws, self._ops.finite_rows(logits).tolist())

    def _run_verify(self, step: StepInput) -> list[VerifyResult]:
        """Compute all draft tokens and verify them."""
        if self._verification is None:
            raise PartError("this worker cannot verify drafts", "give it a verification")
        self.runner.copy_blocks(step.branch_copies)
        batch = [rows for seq in step.verify for rows in _branch_rows(seq)]
        draws = self._verification.draws(step.verify, step.num_token_ids) if self._samples_in_pass else None
        if draws is not None:
            tokens, finite, logits = self.runner.step(batch, draws, all_rows=True)
            if self.watch is not None:
                self.watch("verify", logits)
            return self._verification.decide(step.verify, tokens, finite.tolist(), logits)
        logits = self.runner.all_logits(batch)
        if self.watch is not None:
            self.watch("verify", logits)
        return self._verification.verify(step.verify, logits, step.num_token_ids)

    def _draw(self, logits: Tensor, draws: Draws | None, finite: list[bool]) -> Drawn:
        """Sample a token for each draw; -1 if its row is not finite."""
        if draws is None:
            return Drawn(finite, [], [])
        alive = [i for i, row in enumerate(draws.rows) if finite[row]]
        if not alive:
            return Drawn(finite, [-1] * len(draws.rows), [None] * len(draws.rows))
        if len(alive) == len(draws.rows):
            picked = logits if draws.rows == list(range(len(logits))) else logits[draws.rows]
            tokens = self._sample(picked, draws.batch)
            return self._report(logits, draws, finite, tokens)
        rows = [draws.rows[i] for i in alive]
        some = Draws(rows, draws.batch.rows(alive), [draws.tops[i] for i in alive])
        found = self._report(logits, some, finite, self._sample(logits[rows], some.batch))
        all_tokens = [-1] * len(draws.rows)
        all_logprobs: list[dict[int, float] | None] = [None] * len(draws.rows)
        for i, token, logprobs in zip(alive, found.tokens, found.logprobs, strict=True):
            all_tokens[i], all_logprobs[i] = token, logprobs
        return Drawn(finite, all_tokens, all_logprobs)

    def _check(self, part: str, logits: Tensor, count: int) -> None:
        """Raise PartError if the result of a loop is not one row of logits per sequence."""
        wanted = (count, self.runner.decoder.config.vocab_size)
        if isinstance(logits, Tensor) and logits.is_floating_point() and tuple(logits.shape) == wanted:
            return
        shape = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise PartError(
            f"part {part!r} returned {shape}, which cannot be used", f"return logits {list(wanted)}"
        )

    def _report(self, logits: Tensor, draws: Draws, finite: list[bool], tokens: Tensor) -> Drawn:
        """Return the sampled tokens as Python numbers, with the log-probabilities that are wanted."""
        logprobs: list[dict[int, float] | None] = [None] * len(draws.tops)
        wanted = [i for i, top in enumerate(draws.tops) if top is not None and finite[draws.rows[i]]]
        if wanted:
            tops = [draws.tops[i] or 0 for i in wanted]
            picked = logits[[draws.rows[i] for i in wanted]]
            drawn = tokens[wanted].to(logits.device)
            for i, row in zip(wanted, self._ops.token_logprobs(picked, drawn, tops), strict=True):
                logprobs[i] = row
        return Drawn(finite, tokens.tolist(), logprobs)


def _branch_rows(sequence: DraftRows) -> list[SequenceRows]:
    """The rows of every branch: the newest token and its draft. Without a draft: the newest token."""
    tables = zip(sequence.branches or [[]], sequence.block_tables, strict=False)
    return [
        SequenceRows([sequence.token_id, *drafted], sequence.position, table, sequence.rope_offset)
        for drafted, table in tables
    ]
