"""Workloads of turns: chats and agents. A turn starts when the one before it has ended, and some time later.

    chat     [ user | answer ] ..think.. [ user | answer ] ..think..     the prompt grows by both
    agent    [ task | call ] ..tool.. [ result | call ] ..tool..         short gaps; some calls are cancelled

Conversations begin at their own times, whatever the server does. Only their later turns wait for answers, as
people and programs do. A turn is appended to the tokens of the one before it, with the answer that really
came: so the prefix cache can find all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.bench.load.arrivals import poisson
from minillm.bench.load.plan import Draw, LoadRequest, Plan, Settings


@dataclass(frozen=True)
class Turns:
    """A kind of conversation: medians in tokens, mean seconds. `cancelled`: the share of cancelled turns."""

    count: int
    opening: int
    later: int
    answer: int
    gap: float
    cancelled: float = 0.0
    patience: float = 0.3


CHAT = Turns(count=5, opening=48, later=24, answer=40, gap=1.0)
AGENT = Turns(count=8, opening=160, later=64, answer=24, gap=0.15, cancelled=0.2)


def chat(settings: Settings, draw: Draw) -> Plan:
    """Users of a chat: each reads an answer, then sends the next message."""
    return Plan(f"chats of {CHAT.count} turns, mean think time {CHAT.gap:g} s", _plan(settings, draw, CHAT))


def agents(settings: Settings, draw: Draw) -> Plan:
    """Programs that call a tool after each answer, and give up some of the answers."""
    what = f"agents of {AGENT.count} turns, mean tool time {AGENT.gap:g} s, {AGENT.cancelled:.0%} cancelled"
    return Plan(what, _plan(settings, draw, AGENT))


def _plan(settings: Settings, draw: Draw, kind: Turns) -> list[LoadRequest]:
    requests = list[LoadRequest]()
    for at in poisson(settings.mean_rate / kind.count, settings.duration, draw.rng):
        _add_conversation(requests, at, draw, kind)
    return requests


def _add_conversation(requests: list[LoadRequest], at: float, draw: Draw, kind: Turns) -> None:
    """Add the turns that fit the context."""
    used, after = 0, None
    for turn in range(kind.count):
        new = draw.length(kind.later if turn else kind.opening, max(1, draw.context // 3))
        answer = draw.length(kind.answer, max(1, draw.context // 3))
        gap, gives_up = draw.seconds(kind.gap), draw.rng.random() < kind.cancelled
        patience = draw.seconds(kind.patience)
        if used + new + answer > draw.context:
            return
        used += new + answer
        requests.append(
            LoadRequest(
                draw.tokens(f"turn {len(requests)}", new),
                answer,
                at=at,
                after=after,
                gap=gap,
                cancel_after=patience if gives_up else None,
            )
        )
        after = len(requests) - 1
