"""Task 11.6, who is held back: known mistakes."""

from __future__ import annotations

from minillm.config.tenants import limits_of
from minillm.engine.quota import Quota, Started
from minillm.engine.request import group_blocks
from minillm.engine.scheduler import WaitingLine
from minillm.engine.sequence import Sequence
from minillm.labs.grader.counts import LINES
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab11_tenants.quota_cases import QUOTA_LINES


class Quotas(Quota):
    """The engine's methods; subclasses replace one part of them."""

    def _most(self, sequence: Sequence) -> int | None:
        return limits_of(self._limits, sequence.tenant).max_blocks

    def _is_counted(self, sequence: Sequence) -> bool:
        return any(sequence in started.sequences for started in self._started)

    def _is_behind(self, sequence: Sequence) -> bool:
        return sequence.tenant in self._parked

    def _key(self, sequence: Sequence) -> str | None:
        return sequence.tenant

    def add(self, sequence: Sequence) -> bool:
        most = self._most(sequence)
        if most is None or self._is_counted(sequence):
            return True
        if not self._is_behind(sequence) and self._start(sequence, most):
            return True
        self._parked.setdefault(sequence.tenant, WaitingLine()).add(sequence)
        return False

    def _blocks(self, sequence: Sequence) -> int:
        prompt = len(sequence.prompt_token_ids)
        return group_blocks(prompt, prompt + sequence.max_tokens, 1 + len(sequence.forks), self._size)

    def _forget(self) -> None:
        self._started = [started for started in self._started if not started.has_ended]

    def _used(self, sequence: Sequence) -> int:
        return sum(started.blocks for started in self._started if started.tenant == sequence.tenant)

    def _fits(self, used: int, blocks: int, most: int) -> bool:
        return used == 0 or used + blocks <= most

    def _count(self, sequence: Sequence, blocks: int) -> None:
        self._started.append(Started(sequence.tenant, [sequence, *sequence.forks], blocks))

    def _start(self, sequence: Sequence, most: int) -> bool:
        self._forget()
        blocks = self._blocks(sequence)
        if not self._fits(self._used(sequence), blocks, most):
            return False
        self._count(sequence, blocks)
        return True

    def _line_order(self, line: WaitingLine, now: float) -> list[Sequence]:
        listed = list[Sequence]()
        waiting = WaitingLine()
        for sequences in line._lines.values():
            for sequence in sequences:
                waiting.add(sequence)
        while (sequence := waiting.first(now)) is not None:  # type: ignore[assignment]
            listed.append(sequence)
            waiting.remove(sequence)
        return listed

    def released(self, now: float) -> list[Sequence]:
        found = list[Sequence]()
        for line in list(self._parked.values()):
            for sequence in self._line_order(line, now):
                if not self._start(sequence, self._most(sequence) or 0):
                    break
                found.append(sequence)
                self.remove(sequence)
        return found


class PromptOnly(Quotas):
    """Counts the prompt."""

    def _blocks(self, sequence: Sequence) -> int:
        prompt = len(sequence.prompt_token_ids)
        return group_blocks(prompt, prompt, 1 + len(sequence.forks), self._size)


class OneSample(Quotas):
    """Counts one sample."""

    def _blocks(self, sequence: Sequence) -> int:
        prompt = len(sequence.prompt_token_ids)
        return group_blocks(prompt, prompt + sequence.max_tokens, 1, self._size)


class SamplesApart(Quotas):
    """Counts the prompt for each sample."""

    def _blocks(self, sequence: Sequence) -> int:
        prompt = len(sequence.prompt_token_ids)
        whole = group_blocks(prompt, prompt + sequence.max_tokens, 1, self._size)
        return whole * (1 + len(sequence.forks))


class Tokens(Quotas):
    """Rounds down."""

    def _blocks(self, sequence: Sequence) -> int:
        tokens = len(sequence.prompt_token_ids) + sequence.max_tokens
        return (1 + len(sequence.forks)) * tokens // self._size


class CountsEnded(Quotas):
    """Ended requests count for ever."""

    def _forget(self) -> None:
        pass


class AnyHasEnded(Quotas):
    """A request ends with its first sample."""

    def _forget(self) -> None:
        self._started = [s for s in self._started if not any(each.finish_reason for each in s.sequences)]


class CountsAll(Quotas):
    """Counts the blocks of all tenants."""

    def _used(self, sequence: Sequence) -> int:
        return sum(started.blocks for started in self._started)


class OneLine(Quotas):
    """Behind any parked request everybody waits."""

    def _is_behind(self, sequence: Sequence) -> bool:
        return bool(self._parked)


class OneLineOut(Quotas):
    """If one tenant's first request does not fit, the others' are not looked at."""

    def released(self, now: float) -> list[Sequence]:
        found = list[Sequence]()
        for line in list(self._parked.values()):
            for sequence in self._line_order(line, now):
                if not self._start(sequence, self._most(sequence) or 0):
                    return found
                found.append(sequence)
                self.remove(sequence)
        return found


class Overtakes(Quotas):
    """A request that fits starts, whoever is parked."""

    def _is_behind(self, sequence: Sequence) -> bool:
        return False


class OvertakesOut(Quotas):
    """Every parked request that fits starts."""

    def released(self, now: float) -> list[Sequence]:
        found = list[Sequence]()
        for line in list(self._parked.values()):
            for sequence in self._line_order(line, now):
                if self._start(sequence, self._most(sequence) or 0):
                    found.append(sequence)
                    self.remove(sequence)
        return found


class NeverAlone(Quotas):
    """A request that has the share for itself must fit too."""

    def _fits(self, used: int, blocks: int, most: int) -> bool:
        return used + blocks <= most


class OneLess(Quotas):
    """The last block is never used."""

    def _fits(self, used: int, blocks: int, most: int) -> bool:
        return used == 0 or used + blocks < most


class OnlyUsed(Quotas):
    """Looks at what is used already."""

    def _fits(self, used: int, blocks: int, most: int) -> bool:
        return used < most


class CountsAgain(Quotas):
    """A preempted sequence counts again."""

    def _is_counted(self, sequence: Sequence) -> bool:
        return False


class FirstOnly(Quotas):
    """Knows only the first sequence of a request."""

    def _is_counted(self, sequence: Sequence) -> bool:
        return any(sequence is started.sequences[0] for started in self._started)


class NotCounted(Quotas):
    """Started requests are not written down."""

    def _count(self, sequence: Sequence, blocks: int) -> None:
        pass


class OneAtATime(Quotas):
    """One request is released at a time."""

    def released(self, now: float) -> list[Sequence]:
        for line in list(self._parked.values()):
            sequence = line.first(now)
            if sequence is not None and self._start(sequence, self._most(sequence) or 0):
                self.remove(sequence)
                return [sequence]
        return []


class StaysParked(Quotas):
    """What is released stays in the line."""

    def released(self, now: float) -> list[Sequence]:
        found = list[Sequence]()
        for line in list(self._parked.values()):
            for sequence in self._line_order(line, now):
                if not self._start(sequence, self._most(sequence) or 0):
                    break
                found.append(sequence)
        return found


class OldOrder(Quotas):
    """In the order of submission, whatever the priority."""

    def _line_order(self, line: WaitingLine, now: float) -> list[Sequence]:
        return sorted(super()._line_order(line, now), key=lambda sequence: sequence.order)


class NoAgeing(Quotas):
    """By priority, without the age."""

    def _line_order(self, line: WaitingLine, now: float) -> list[Sequence]:
        return sorted(super()._line_order(line, now), key=lambda s: (s.params.priority, s.order))


class ParksWithoutLimit(Quotas):
    """No limit is taken for no blocks."""

    def _most(self, sequence: Sequence) -> int | None:
        return super()._most(sequence) or 0


class OnlyNamed(Quotas):
    """Limits of tenants that are not named are not found."""

    def _most(self, sequence: Sequence) -> int | None:
        limit = self._limits.get(sequence.tenant)
        return limit.max_blocks if limit else None


class ComparesAll(Quotas):
    """Looks for every started request in every parked one."""

    def _used(self, sequence: Sequence) -> int:
        for started in self._started:
            for other in self._started:
                if other is started:
                    break
        return super()._used(sequence)


QUOTA_MISTAKES = (
    Mistake(
        "only the prompt counts: the answer needs blocks too, and would exceed the limit later", PromptOnly
    ),
    Mistake("only one sample counts: `forks` are the others", OneSample),
    Mistake("the prompt counts once for each sample: its full blocks are shared", SamplesApart),
    Mistake(
        "tokens are divided by the block size and rounded down: a block that is partly used counts", Tokens
    ),
    Mistake("requests that have ended still count: nobody starts any more", CountsEnded),
    Mistake("a request is forgotten when its first sample ends: the others still use blocks", AnyHasEnded),
    Mistake("the blocks of other tenants count: each tenant has its own limit", CountsAll),
    Mistake("a parked request blocks other tenants: each has a line of its own", OneLine),
    Mistake(
        "a tenant whose request does not fit blocks the parked ones of others: look at each line", OneLineOut
    ),
    Mistake("a request overtakes a parked one of its tenant: the large one could wait for ever", Overtakes),
    Mistake("parked requests overtake the first one that does not fit: stop there", OvertakesOut),
    Mistake("a request that has the share for itself waits for ever: alone it always starts", NeverAlone),
    Mistake("the last block is never used: exactly `max_blocks` is allowed", OneLess),
    Mistake("only what is used already is compared with the limit: add the new request's blocks", OnlyUsed),
    Mistake("a preempted request counts again, or is parked: it has started already", CountsAgain),
    Mistake("only the first sequence of a started request is known: a fork of it is parked", FirstOnly),
    Mistake("started requests are not written down in `_started`: the limit never holds", NotCounted),
    Mistake("one request is released at a time: all that fit start", OneAtATime),
    Mistake("a released request stays parked: it would start twice", StaysParked),
    Mistake(
        "parked requests start in the order of submission: `first(now)` gives the line's own order", OldOrder
    ),
    Mistake("parked requests do not age: pass `now` on to `first`", NoAgeing),
    Mistake("no `max_blocks` is taken for 0 blocks: None means no limit", ParksWithoutLimit),
    Mistake("a tenant that is not named has no limit: `limits_of` finds that of None", OnlyNamed),
    Mistake(
        f"more than {QUOTA_LINES:,} {LINES} for 200 started and 200 parked requests: look at each once "
        "for each that starts, and compare none with all others",
        ComparesAll,
    ),
)
