"""Watches the logits that tokens are drawn from, and says which token of which request each row gave.

    worker   prefill pass --logits--> keep      one row for each sequence whose prefill ends, and its forks
             decode pass  --logits--> keep      one row for each decoding sequence
             verify pass  --logits--> keep      the newest token and all drafts of every branch
    commit   tokens are appended
    stepper  end of step -----------> give(sequence, position, kept row)      only rows of appended tokens

The worker sees rows and no requests; the sequences know their tokens only after the commit, which may end an
answer in the middle of an accepted draft. So a watch keeps something of every row (a digest, a copy) and
gives it away when the step has ended. A step that fails or is interrupted gives nothing.

Without a watch the step path has a comparison with None for each pass, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from typing import Generic, Literal, Protocol, TypeVar

from torch import Tensor

from minillm.engine.batch import PlannedStep
from minillm.engine.sequence import Sequence
from minillm.worker.step import StepOutput

Kept = TypeVar("Kept")


class StepWatch(Protocol):
    """What the stepper tells a watch; the worker calls it with the logits in between."""

    def __call__(self, name: Literal["prefill", "decode", "verify"], logits: Tensor, /) -> None: ...

    def begin(self, step: PlannedStep) -> None:
        """The step is planned, and nothing is computed."""

    def end(self, step: PlannedStep, output: StepOutput) -> None:
        """The step's tokens have been appended."""


class RowWatch(Generic[Kept]):
    """Keeps `keep(logits)` of every row, and calls `give(sequence, output position, kept)` for its token.

    `keep` gets logits [num_rows, vocab_size] on the model's device and returns one value per row. `done` is
    called at the end of each step.
    """

    def __init__(
        self,
        keep: Callable[[Tensor], List[Kept]],
        give: Callable[[Sequence, int, Kept], None],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self._keep, self._give, self._done = keep, give, done
        self._kept: dict[str, List[Kept]] = {}
        self._before: dict[Sequence, int] = {}  # tokens of each answer before the step

    def __call__(self, name: Literal["prefill", "decode", "verify"], logits: Tensor, /) -> None:
        self._kept[name] = self._keep(logits)

    def begin(self, step: PlannedStep) -> None:
        planned = (*step.plan.decode, *step.starting)
        self._kept, self._before = {}, {s: len(s.output_token_ids) for s in planned}

    def end(self, step: PlannedStep, output: StepOutput) -> None:
        for sequence, kept in self._rows(step, output):
            first = self._before.get(sequence, 0)
            count = len(sequence.output_token_ids) - first
            for position, row in enumerate(kept[:count], first):
                self._give(sequence, position, row)
        self._done()
        self._kept, self._before = {}, {}

    def _rows(self, step: PlannedStep, output: StepOutput) -> Iterator[tuple[Sequence, List[Kept]]]:
        """Each sequence, and the rows of its tokens of this step in their order."""
        starting = self._kept.get("prefill", [])
        yield from ((s, [row]) for s, row in zip(step.starting, starting, strict=False))
        if not output.verify:
            decoded = self._kept.get("decode", [])
            yield from ((s, [row]) for s, row in zip(step.plan.decode, decoded, strict=False))
            return
        rows, at = self._kept.get("verify", []), 0
        results = zip(step.plan.decode, step.proposals, output.verify, strict=True)
        for sequence, proposal, result in results:
            sizes = [len(drafted) + 1 for drafted in proposal.branches or [[]]]
            start = at + sum(sizes[: result.branch])
            yield sequence, rows[start : start + sizes[result.branch]]
            at += sum(sizes)
