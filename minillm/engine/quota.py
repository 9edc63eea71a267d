"""The quota of running requests: a tenant with `max_blocks` waits here until its share has room.

    add --> fits beside the tenant's running requests? --yes--> the scheduler
                    |no
                    `--> parked, in the tenant's own line         other tenants pass by

A request counts with its full length, prompt and `max_tokens`, from its start to its end. So a tenant never
exceeds `max_blocks`, and none of its requests is preempted for it. A request that does not fit an empty share
is refused earlier (`admission.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.config.tenants import Limits, limits_of
from minillm.engine.request import group_blocks
from minillm.engine.scheduler import WaitingLine
from minillm.engine.sequence import Sequence


@dataclass
class Started:
    """Sequences of one request that count together, and their blocks at full length."""

    tenant: str | None
    sequences: list[Sequence]
    blocks: int

    @property
    def has_ended(self) -> bool:
        """Whether all its sequences have ended."""
        return all(sequence.finish_reason for sequence in self.sequences)


class Quota:
    """Which requests of tenants with `max_blocks` have started, and which are parked."""

    def __init__(self, limits: Limits, block_size: int) -> None:
        self._limits, self._size = limits, block_size
        self._started: list[Started] = []
        self._parked: dict[str | None, WaitingLine] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parked.values()))

    def add(self, sequence: Sequence) -> bool:
        """Start a request, or park it if it does not fit; return whether it has started.

        Without `max_blocks` every request starts. So does a sequence of a request that is counted already (a
        fork of it, or one that was preempted); it is not counted again. Behind a parked request of its own
        tenant nobody starts.
        """
        most = limits_of(self._limits, sequence.tenant).max_blocks
        if most is None or any(sequence in started.sequences for started in self._started):
            return True
        if sequence.tenant not in self._parked and self._start(sequence, most):
            return True
        self._parked.setdefault(sequence.tenant, WaitingLine()).add(sequence)
        return False

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that has ended, if it is parked."""
        if line := self._parked.get(sequence.tenant):
            line.remove(sequence)
            if not len(line):
                del self._parked[sequence.tenant]

    def released(self, now: float) -> list[Sequence]:
        """Start the parked requests that fit now; return their sequences. They are no longer parked.

        Each tenant's line is looked at alone. Its requests start in the line's own order (`first(now)`), up
        to the first that does not fit.
        """
        if not self._parked:
            return []
        found = list[Sequence]()
        for tenant, line in list(self._parked.items()):
            most = limits_of(self._limits, tenant).max_blocks or 0
            while (sequence := line.first(now)) is not None and self._start(sequence, most):
                found.append(sequence)
                self.remove(sequence)
        return found

    def _start(self, sequence: Sequence, most: int) -> bool:
        """Count a request in `_started` if its tenant's requests then have at most `most` blocks.

        `sequence` is the first of its request; `forks` are the others. They count at their full length,
        prompt and `max_tokens`, with the prompt's full blocks once (`group_blocks`). Requests that have ended
        count no more, and are forgotten. One that is alone always starts: `admission.py` has checked it.
        """
        self._started = [started for started in self._started if not started.has_ended]
        group, prompt_len = [sequence, *sequence.forks], len(sequence.prompt_token_ids)
        blocks = group_blocks(prompt_len, prompt_len + sequence.max_tokens, len(group), self._size)
        used = sum(s.blocks for s in self._started if s.tenant == sequence.tenant)
        if used and used + blocks > most:
            return False
        self._started.append(Started(sequence.tenant, group, blocks))
        return True
