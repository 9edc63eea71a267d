"""The workloads by name."""

from __future__ import annotations

from collections.abc import Callable

from minillm.bench.load.plain import bursts, plain_poisson, rag
from minillm.bench.load.plan import Draw, Plan, Settings
from minillm.bench.load.replay import trace
from minillm.bench.load.tenants import flood, tenants
from minillm.bench.load.turns import agents, chat
from minillm.config import shown
from minillm.errors import UsageError

MIN_CONTEXT = 8  # room for a common beginning, a question and an answer
WORKLOADS: dict[str, Callable[[Settings, Draw], Plan]] = {
    "poisson": plain_poisson,
    "bursts": bursts,
    "trace": trace,
    "chat": chat,
    "rag": rag,
    "agents": agents,
    "tenants": tenants,
    "flood": flood,
}


def require_source(name: str, settings: Settings) -> None:
    """Check that the workload `trace` has a file, and that no other one has: before a model is loaded.

    Raises:
        UsageError: it is not so.
    """
    if (name == "trace") != (settings.trace is not None):
        what = (
            "the workload trace needs --trace FILE" if name == "trace" else "--trace needs --workload trace"
        )
        raise UsageError(what, "a .csv (Azure) or .jsonl (Mooncake) file")


def make_plan(name: str, settings: Settings, context: int, vocab_size: int, repeat: int = 0) -> Plan:
    """The plan of a workload. `context`: the most tokens of a request with its answer.

    Raises:
        UsageError: an unknown name, a trace that cannot be used, or no request in this time.
    """
    if name not in WORKLOADS:
        raise UsageError(f"there is no workload {shown(name)}", f"there are {', '.join(WORKLOADS)}")
    require_source(name, settings)
    if context < MIN_CONTEXT:
        raise UsageError(f"a workload needs a context of {MIN_CONTEXT} tokens, not {context}")
    return WORKLOADS[name](settings, Draw(settings.seed, context, vocab_size, repeat))
