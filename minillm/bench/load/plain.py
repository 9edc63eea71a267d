"""Workloads of single requests: Poisson arrivals, bursts, one document with many questions."""

from __future__ import annotations

from minillm.bench.load.arrivals import gamma_bursts, poisson
from minillm.bench.load.plan import Draw, LoadRequest, Plan, Settings

PROMPT, ANSWER = 64, 32  # medians, in tokens
DOCUMENT, QUESTION, REPLY = 1024, 24, 24


def plain_poisson(settings: Settings, draw: Draw) -> Plan:
    """Independent users."""
    times = poisson(settings.mean_rate, settings.duration, draw.rng)
    return Plan("independent requests, Poisson arrivals", _requests(times, draw))


def bursts(settings: Settings, draw: Draw) -> Plan:
    """The same requests, in bursts."""
    times = gamma_bursts(settings.mean_rate, settings.duration, settings.cv, draw.rng)
    return Plan(f"independent requests in bursts, cv {settings.cv:g}", _requests(times, draw))


def rag(settings: Settings, draw: Draw) -> Plan:
    """Many questions about one document, which every prompt begins with."""
    document = draw.tokens("document", min(DOCUMENT, draw.context // 2))
    room = draw.context - len(document)
    requests = []
    for number, at in enumerate(poisson(settings.mean_rate, settings.duration, draw.rng)):
        question = draw.tokens(f"question {number}", draw.length(QUESTION, max(1, room // 2)))
        answer = draw.length(REPLY, max(1, room - len(question)))
        requests.append(LoadRequest(document + question, answer, at))
    return Plan(f"questions about one document of {len(document)} tokens", requests)


def _requests(times: list[float], draw: Draw) -> list[LoadRequest]:
    requests = []
    for number, at in enumerate(times):
        prompt = draw.tokens(f"prompt {number}", draw.length(PROMPT, max(1, draw.context // 2)))
        requests.append(LoadRequest(prompt, draw.length(ANSWER, max(1, draw.context // 2)), at))
    return requests
