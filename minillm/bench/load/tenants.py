"""Workloads of several tenants: one system prompt for all of them, and a tenant that floods the engine.

tenants    [ system prompt | a's question ]     the prompt is a public prefix: computed once, for all
           [ system prompt | b's question ]     without it each tenant has a copy of its own
flood      one tenant sends ten times as much as another, which is watched
"""

from __future__ import annotations

import heapq

from minillm.bench.load.arrivals import poisson
from minillm.bench.load.plan import Draw, LoadRequest, Plan, Settings, require_count
from minillm.config import TenantLimits

NUM_TENANTS, SYSTEM, QUESTION, ANSWER = 8, 256, 32, 24
FLOODING, WATCHED = "flooding", "watched"
TIMES_AS_MANY, FLOOD_PROMPT, FLOOD_ANSWER = 10, 192, 32
PROMPT = 48
GUARANTEED_SEQUENCES, GUARANTEED_TOKENS = 4, 64  # of the watched tenant, where it is guaranteed anything


def tenants(settings: Settings, draw: Draw) -> Plan:
    """One application for many customers."""
    system = draw.fixed_tokens("system", max(1, min(SYSTEM, draw.context // 4)))
    room = max(1, draw.context // 4)
    requests = []
    for number, at in enumerate(poisson(settings.mean_rate, settings.duration, draw.rng)):
        tenant = f"tenant {draw.rng.randrange(NUM_TENANTS)}"
        question = draw.tokens(f"question {number}", draw.length(QUESTION, room))
        requests.append(LoadRequest(system + question, draw.length(ANSWER, room), at, tenant=tenant))
    return Plan(
        f"{NUM_TENANTS} tenants with one public system prompt of {len(system)} tokens",
        requests,
        options={"public_prefixes": [list(system)]},
        variants={"no public prefix": {"public_prefixes": []}},
    )


def flood(settings: Settings, draw: Draw) -> Plan:
    """One tenant floods the engine, another is watched; the comparison guarantees the other a share."""
    calm = poisson(settings.mean_rate, settings.duration, draw.rng)
    wave = poisson(settings.mean_rate * TIMES_AS_MANY, settings.duration, draw.rng)
    require_count(len(calm) + len(wave))
    requests = heapq.merge(
        _requests(WATCHED, calm, PROMPT, draw),
        _requests(FLOODING, wave, FLOOD_PROMPT, draw),
        key=lambda request: request.at,
    )
    return Plan(
        f"a tenant floods with {TIMES_AS_MANY} times the rate of the watched one",
        list(requests),
        variants={"a guarantee": {"tenant_limits": {WATCHED: _guarantee(draw.context)}}},
        watched=WATCHED,
    )


def _requests(tenant: str, times: list[float], prompt: int, draw: Draw) -> list[LoadRequest]:
    room, answer = max(1, draw.context // 3), FLOOD_ANSWER if tenant == FLOODING else ANSWER
    return [
        LoadRequest(
            draw.tokens(f"{tenant} {number}", draw.length(prompt, room)),
            draw.length(answer, room),
            at,
            tenant=tenant,
        )
        for number, at in enumerate(times)
    ]


def _guarantee(context: int) -> TenantLimits:
    blocks = max(1, GUARANTEED_SEQUENCES * min(context, 4 * PROMPT) // 16)
    return TenantLimits(guaranteed_blocks=blocks, guaranteed_tokens_per_step=GUARANTEED_TOKENS)
