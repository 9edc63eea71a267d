"""How a case of tasks 11.6 and 11.7 is made: requests a, b, c ... of tenants, and what happens to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from minillm.config import SamplingParams
from minillm.config.tenants import TenantLimits
from minillm.engine.request import Request
from minillm.engine.sequence import Sequence as EngineSequence
from minillm.labs.grader.lab import Case, Words
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable
from minillm.text.detokenizer import NullDetokenizer

BLOCK_SIZE = 4


@dataclass(frozen=True)
class Asked:
    """A request: its tenant, and the tokens of prompt and answer."""

    tenant: str | None
    prompt: int
    answer: int = 4
    n: int = 1
    priority: int = 0
    has_started: bool = False
    arrival: float = 0.0

    def made(self, number: int) -> Request:
        """The request, submitted as number `number`."""
        params, table = SamplingParams(priority=self.priority), BlockTable(BlockPool(1, BLOCK_SIZE))
        sequences = [
            EngineSequence(
                f"req-{number}",
                index,
                [1] * self.prompt,
                params,
                0,
                self.answer,
                table,
                NullDetokenizer(),
                tenant=self.tenant,
                order=number,
                arrival=self.arrival,
            )
            for index in range(self.n)
        ]
        sequences[0].forks = sequences[1:]
        if self.has_started:
            sequences[0].admitted = 0.0
        return Request(f"req-{number}", sequences)


Limits = dict[str | None, TenantLimits]
Action = str
"""One of: "add b", "again b" (preempted), "fork b", "end b", "end one b", "drop b" (aborted), "look",
"look late" (after 100 s)."""


class QuotaStage:
    """A quota of the student's class, and its requests."""

    def __init__(self, quota_class: Any, limits: Limits, asked: Sequence[Asked]) -> None:
        self.quota = quota_class(limits, BLOCK_SIZE)
        self.requests = {chr(ord("a") + i): each.made(i) for i, each in enumerate(asked)}

    def act(self, action: Action) -> Words:
        """Carry out one action; what happened, in words, and how many sequences are parked."""
        what, _, which = action.rpartition(" ")
        if action.startswith("look"):
            found = self.quota.released(100.0 if which == "late" else 0.0)
            told = "released " + (" ".join(self._name(sequence) for sequence in found) or "nobody")
        elif what in ("add", "again", "fork"):
            sequence = self.requests[which].sequences[-1 if what == "fork" else 0]
            told = f"{action}: {'starts' if self.quota.add(sequence) else 'parked'}"
        else:
            told = action
            for sequence in self.requests[which].sequences[: 1 if what == "end one" else None]:
                sequence.end("cancelled" if what == "drop" else "length")
                self.quota.remove(sequence)
        return Words(f"{told}; {len(self.quota)} parked")

    def _name(self, sequence: EngineSequence) -> str:
        letter = next(k for k, request in self.requests.items() if sequence in request.sequences)
        return letter + (str(sequence.index) if sequence.index else "")


def quota_case(title: str, limits: Limits, asked: Sequence[Asked], *actions: Action) -> Case:
    """What happens at each action."""

    def run(quota_class: Any) -> list[Words]:
        stage = QuotaStage(quota_class, limits, asked)
        return [stage.act(action) for action in actions]

    return Case(title, run)


def _random_case(number: int, random: Random) -> Case:
    most = random.choice((6, 10))
    limits: Limits = {
        "ben": TenantLimits(max_blocks=most),
        None: TenantLimits(max_blocks=random.choice((None, 8))),
    }
    asked = [
        Asked(
            random.choice(("ben", "ben", "cleo", None)),
            random.randrange(1, 13),
            random.randrange(1, 9),
            random.choice((1, 1, 1, 2)),
            random.choice((0, 0, 0, 1)),
        )
        for _ in range(20)
    ]
    actions, live = list[Action](), list[str]()
    for i in range(len(asked)):
        actions.append(f"add {chr(ord('a') + i)}")
        live.append(actions[-1][-1])
        if random.random() < 0.5:
            gone = live.pop(random.randrange(len(live)))
            actions += [f"{random.choice(('end', 'drop'))} {gone}", "look"]
    actions += [action for name in live for action in (f"end {name}", "look")]
    return quota_case(f"random requests {number}", limits, asked, *actions)


def more_quotas(random: Random) -> Iterable[Case]:
    """Random requests of four tenants."""
    return [_random_case(number + 1, random) for number in range(4)]
