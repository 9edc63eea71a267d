# ruff: noqa: F401 - imports that the finished file uses
"""Lab 11: Tenants: scoped caching and quotas under a flood.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 11        run the checks
    minillm labs hint 11.1       a hint; --level 2 and --level 3 give more detail

Made from the engine's source by `minillm labs start 11`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from minillm.config import EngineConfig
from minillm.config.tenants import Limits, limits_of
from minillm.engine.queue_counts import Lengths, prompt_tokens
from minillm.engine.quota import Started
from minillm.engine.request import Request, group_blocks
from minillm.engine.scheduler import WaitingLine
from minillm.engine.sequence import Sequence
from minillm.errors import QueueFull
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import Scope
from minillm.memory.shares import Share
from minillm.ops.sampling import mix64


def block_scope(envelope: str, tenant: str | None, is_long: bool, after: int | None) -> Scope:
    """The scope of a tenant's own blocks: all that their keys and values depend on, apart from the ids.

    Args:
        envelope: the model and its settings, as a digest.
        tenant: as the request gives it. The field `tenant` of the scope is the same value.
        is_long: whether the sequence reads longrope's tables of long sequences, so that keys are others.
        after: the number of the public block that the tenant's first own block follows, from 0; None if the
            prompt begins with no public block.
    """
    # Stuck? minillm labs hint 11.1
    raise NotImplementedError("Lab 11.1 block_scope; hint: minillm labs hint 11.1")


def derived_seed(engine_seed: int, tenant: str | None, number: int) -> int:
    """The seed of a request that gives none: a whole number of 32 bits, from 0.

    It depends on the engine's seed, the tenant and `number`, that of the tenant's own earlier requests. A
    number counted over all tenants would tell each how much the others send. Two questions that differ in
    one of the three have different seeds, but for chance; None and "" are two tenants. Equal questions have
    equal seeds, in every process. The work does not grow with `number`.
    """
    # Stuck? minillm labs hint 11.2
    raise NotImplementedError("Lab 11.2 derived_seed; hint: minillm labs hint 11.2")


class Shares:
    """All shares of one pool. `common`: the blocks that are guaranteed to none."""

    def __init__(self, pool: BlockPool, common: int) -> None:
        self.pool, self.common = pool, common
        self.members: list[Share] = []

    def add(self, guaranteed: int, keeps_outside: bool = False) -> Share:
        """Make one more share. Its guaranteed blocks are not part of `common`."""
        self.members.append(Share(self, guaranteed, keeps_outside))
        return self.members[-1]

    @property
    def num_unused(self) -> int:
        """Unused blocks of all shares."""
        return sum(share.num_unused for share in self.members)

    @property
    def available(self) -> int:
        """Blocks that no sequence uses."""
        return self.pool.num_free + self.num_unused

    def room(self, share: Share) -> int:
        """The blocks that the sequences of `share` can still get.

        Those of its guarantee that no sequence uses and, if it `borrows`, what is left of the common blocks:
        each share has as many of them as it has live beyond its own guarantee. Unused blocks take no room.
        """
        # Stuck? minillm labs hint 11.3
        raise NotImplementedError("Lab 11.3 Shares.room; hint: minillm labs hint 11.3")

    def trim(self, share: Share, count: int = 0) -> int:
        """Evict what a share may not keep if `count` more of its blocks become live; return the number.

        A share that `keeps_outside` keeps all. Another one keeps as many unused blocks as its guarantee then
        has left, and its oldest ones go. `share.cache` evicts; it is None if prefix caching is off.
        """
        # Stuck? minillm labs hint 11.4
        raise NotImplementedError("Lab 11.4 Shares.trim; hint: minillm labs hint 11.4")

    def reclaim(self, count: int) -> int:
        """Have `count` free blocks in the pool, if evictions outside guarantees allow it.

        Only shares that `keeps_outside` lose blocks. The one with the most unused blocks, of several the one
        that was made first, loses all that is missing; what it lacks the next one loses. Never raises.

        Returns:
            The number of blocks that were evicted.
        """
        # Stuck? minillm labs hint 11.5
        raise NotImplementedError("Lab 11.5 Shares.reclaim; hint: minillm labs hint 11.5")


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
        # Stuck? minillm labs hint 11.6
        raise NotImplementedError(
            "Lab 11.6 Quota.add, Quota._start, Quota.released; hint: minillm labs hint 11.6"
        )

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
        # Stuck? minillm labs hint 11.6
        raise NotImplementedError(
            "Lab 11.6 Quota.add, Quota._start, Quota.released; hint: minillm labs hint 11.6"
        )

    def _start(self, sequence: Sequence, most: int) -> bool:
        """Count a request in `_started` if its tenant's requests then have at most `most` blocks.

        `sequence` is the first of its request; `forks` are the others. They count at their full length,
        prompt and `max_tokens`, with the prompt's full blocks once (`group_blocks`). Requests that have ended
        count no more, and are forgotten. One that is alone always starts: `admission.py` has checked it.
        """
        # Stuck? minillm labs hint 11.6
        raise NotImplementedError(
            "Lab 11.6 Quota.add, Quota._start, Quota.released; hint: minillm labs hint 11.6"
        )


def require_place(request: Request, others: Iterable[Request], config: EngineConfig) -> None:
    """Require that one more request may wait beside the live requests `others`.

    Of these only those wait that no step has admitted (`admitted` is None). A tenant with a guarantee
    (`config.has_guarantee`) has a queue of its own; all others share one. A queue holds at most
    `config.max_queued_requests` requests and, with the new one, `config.max_queued_tokens` prompt tokens
    (`prompt_tokens`); if nobody waits in it, any number of tokens fits. Under a tenant's `max_queued_tokens`
    (`limits_of`) its own waiting requests are limited in the same way, whatever its queue is.

    Raises:
        QueueFull: a limit is reached. The message names the limit and nothing of other tenants.
    """
    # Stuck? minillm labs hint 11.7
    raise NotImplementedError("Lab 11.7 require_place; hint: minillm labs hint 11.7")
