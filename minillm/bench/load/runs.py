"""The runs of a workload: repeats, and with `ablate` the same load on engines that lack one thing, in turns.

    repeat 1    as configured   whole prompts   no prefix cache   one at a time   drafts
    repeat 2    drafts          one at a time   no prefix cache   whole prompts   as configured
    ...

The machine is read before and after each run. Comparisons are of runs of one repeat, because the speed of a
shared machine changes within minutes. Paging is part of every engine and cannot be switched off.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from minillm.bench.load.clock import Clock, RealClock
from minillm.bench.load.figures import figures
from minillm.bench.load.generator import Generator
from minillm.bench.load.plan import LoadRequest, Plan, Settings
from minillm.bench.load.validity import Reading, disturbances, read_machine, reasons, spread, spread_reasons
from minillm.bench.load.workloads import make_plan
from minillm.bench.machine import describe
from minillm.bench.parts import Progress, no_progress
from minillm.engine.engine import Engine
from minillm.llm import LLM
from minillm.observe.slo import Slo

Load = Callable[..., LLM]
Watch = Callable[[Engine, str], AbstractContextManager[Callable[[], None]]]  # gives what to call after a step
BASE = "as configured"
WARM_UP = 4  # requests sent at once before the first repeat
FIRST = 0  # the repeat whose plan says what an engine needs
COMPARED = (
    "output_tokens_per_s",
    "goodput_per_s",
    "ttft.p50",
    "ttft.p99",
    "itl.p99",
    "e2e.p50",
    "watched.ttft.p99",
)


def no_watch(_engine: Engine, _title: str) -> AbstractContextManager[Callable[[], None]]:
    """The watch of a caller that shows nothing."""
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Bench:
    """A workload to run. `load(**options)` makes an engine; `draft_model` is for the variant that drafts."""

    load: Load
    name: str
    settings: Settings
    slo: Slo = field(default_factory=Slo)
    repeats: int = 5
    ablate: bool = False
    draft_model: str = "auto"
    clock: Callable[[], Clock] = RealClock
    machine: Callable[[], Reading] = read_machine
    watch: Watch = no_watch

    def run(self, progress: Progress = no_progress) -> dict[str, Any]:
        """Run all repeats of all variants; return the report."""
        plain = self.load()
        context = _context(plain)
        options = self._variants(self._plan(plain, context, FIRST), context)
        llms = {name: self.load(**changes) if changes else plain for name, changes in options.items()}
        done, runs = 0, {name: list[dict[str, Any]]() for name in llms}
        for repeat in range(-1, self.repeats):  # the first warms up
            names = list(llms) if repeat % 2 == 0 else list(reversed(llms))
            for name in names:
                progress(done, (self.repeats + 1) * len(llms))
                plan = self._plan(llms[name], context, repeat)
                if repeat < 0:
                    Generator(llms[name].engine, self.clock(), _warm_up(plan)).run()
                else:
                    runs[name].append(self._once(llms[name], plan, name))
                done += 1
        report: dict[str, Any] = finite(self._report(plain, self._plan(plain, context, FIRST), options, runs))
        return report

    def _plan(self, llm: LLM, context: int, repeat: int) -> Plan:
        vocab_size = llm.engine.model.config.vocab_size
        return make_plan(self.name, self.settings, context, vocab_size, repeat)

    def _variants(self, plan: Plan, context: int) -> dict[str, dict[str, Any]]:
        """The options of each engine, by name."""
        base = dict(plan.options)
        found: dict[str, dict[str, Any]] = {BASE: base}
        if self.ablate:
            shared = {name: value for name, value in base.items() if name != "public_prefixes"}
            whole = {"prefill_chunk": context, "max_num_batched_tokens": max(2048, 2 * context)}
            found["whole prompts"] = base | whole
            found["no prefix cache"] = shared | {"prefix_caching": False}
            found["one at a time"] = base | {"max_num_seqs": 1}
            found["drafts"] = base | {"draft_model": self.draft_model}
            found |= {name: base | dict(changes) for name, changes in plan.variants.items()}
        return found

    def _once(self, llm: LLM, plan: Plan, name: str) -> dict[str, Any]:
        engine = llm.engine
        before = self.machine()
        with self.watch(engine, f"{self.name}, {name}") as on_step:
            run = Generator(engine, self.clock(), plan.requests, on_step).run()
        machine = disturbances(before, self.machine())
        found = figures(run, self.slo, engine.config.block_size, plan.watched)
        return {**found, "machine": machine, "void": reasons(run, machine)}

    def _report(
        self, llm: LLM, plan: Plan, options: Mapping[str, Any], runs: Mapping[str, list[dict[str, Any]]]
    ) -> dict[str, Any]:
        model = llm.engine.model
        variants = [
            {"name": name, "options": _told(options[name]), **summarise_runs(found, runs[BASE])}
            for name, found in runs.items()
        ]
        return {
            "workload": {"name": self.name, "what": plan.what, **_described(self.settings, plan)},
            "model": model.folder.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "backend": model.decoder.ops.name,
            "engine": _engine_flags(llm),
            "machine": describe(),
            "slo": {f"{name}_s": self.slo.limits.get(name) for name in ("ttft", "tpot")},
            "repeats": self.repeats,
            "variants": variants,
            "void": [f"{v['name']}: {reason}" for v in variants for reason in v["void"]],
        }


def summarise_runs(runs: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, spread and reasons of the repeats of one variant; ratios to the runs of `base`, in pairs."""
    flat = [flatten(run) for run in runs]
    found = dict[str, dict[str, float]]()
    for name in flat[0]:
        if values := [value for run in flat if (value := run.get(name)) is not None]:
            median = statistics.median(values)
            bounds = {"low": min(values), "high": max(values), "spread": spread(values)}
            found[name] = {"median": median, **bounds}
    ratios = dict[str, float]()
    for name in COMPARED:
        pairs = [(a.get(name), b.get(name)) for a, b in zip(flat, map(flatten, base), strict=True)]
        divided = [mine / other for mine, other in pairs if mine is not None and other and other != math.inf]
        if divided:
            ratios[name] = statistics.median(divided)
    void = [f"repeat {i}: {reason}" for i, run in enumerate(runs, 1) for reason in run["void"]]
    return {"figures": found, "ratios": ratios, "runs": list(runs), "void": void + spread_reasons(found)}


def flatten(run: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """The numbers of a run by names such as "ttft.p99"."""
    found = dict[str, float | None]()
    for name, value in run.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, int | float):
            found[prefix + name] = value
    return found


def finite(value: Any) -> Any:
    """A report as JSON knows it: what is infinite becomes None."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if value == math.inf else value


def _warm_up(plan: Plan) -> list[LoadRequest]:
    """The first few requests of a plan, all at once."""
    first = [request for request in plan.requests if request.after is None][:WARM_UP]
    return [replace(request, at=0.0, cancel_after=None) for request in first]


def _context(llm: LLM) -> int:
    """The most tokens of a request: the context, or half of the memory, as engines may reserve some of it."""
    return min(llm.engine.model.max_model_len, llm.engine.pool.num_blocks * llm.engine.config.block_size // 2)


def _described(settings: Settings, plan: Plan) -> dict[str, Any]:
    return {
        "requests": len(plan.requests),
        "rate_per_s": settings.rate if plan.source else settings.mean_rate,
        "duration_s": settings.duration,
        "seed": settings.seed,
        "cv": settings.cv,
        "trace": plan.source,
    }


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an engine as JSON; of public prefixes only the lengths."""
    found = dict(options)
    if "public_prefixes" in found:
        found["public_prefixes"] = [len(prefix) for prefix in found["public_prefixes"]]
    if "tenant_limits" in found:
        found["tenant_limits"] = {name: asdict(limits) for name, limits in found["tenant_limits"].items()}
    return found


def _engine_flags(llm: LLM) -> dict[str, Any]:
    names = "block_size max_num_seqs max_num_batched_tokens prefill_chunk prefix_caching draft_model".split()
    config = llm.engine.config
    return {name: getattr(config, name) for name in names} | {
        "num_blocks": llm.engine.pool.num_blocks,
        "max_model_len": llm.engine.model.max_model_len,
    }
