"""The costs of speculation: time outside both models, and a drafter that is always wrong."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from minillm.bench.turns import STORIES, Bench, Work, script_of, speed_up
from minillm.observe.events import Event
from minillm.observe.metrics import summarize
from minillm.speculation.proposal import Drafter
from minillm.speculation.scripted import RandomDrafter, ScriptedDrafter
from minillm.worker.step import StepInput, StepOutput

LONG = 8  # times the usual length of answers, so that the phase before the switch-off counts little


def costs(bench: Bench) -> dict[str, Any]:
    """Time outside the models in a step with drafts, and outside pass and sampling in a step without drafts.

    Medians over steps, so that a step that the machine delayed has no weight.
    """
    llm = bench.load(draft_model=bench.draft_model, adaptive_draft=False)
    bench.stories.run(llm)  # warms up
    events = bench.stories.events(llm)
    outside, step = _medians(outside_seconds(events))
    plain_outside, plain_step = _medians(_plain_outside(bench))
    tokens = summarize(events).speculation.tokens_per_step or 1.0
    return {
        "step_s": step,
        "outside_s": outside,
        "outside_share": outside / step,
        "outside_per_token_s": outside / tokens,
        "plain_step_s": plain_step,
        "plain_outside_s": plain_outside,
        "plain_outside_share": plain_outside / plain_step,
        "added_share": (outside - plain_outside) / step,
    }


def outside_seconds(events: Sequence[Event]) -> list[tuple[float, float]]:
    """(seconds outside both models, seconds) of each step that drafted and did not prefill."""
    found, models = list[tuple[float, float]](), 0.0
    for event in events:
        if event.kind == "speculate":
            models = event["draft_seconds"] + event["verify_seconds"]
        elif event.kind == "step":
            if models and not event["prefill_tokens"]:
                found.append((event["seconds"] - models, event["seconds"]))
            models = 0.0
    return found


def _plain_outside(bench: Bench) -> list[tuple[float, float]]:
    """The same for an engine without drafts: seconds outside the decode pass and its sampling."""
    llm, spent, found = bench.load(), [0.0], list[tuple[float, float]]()
    execute = llm.engine.worker.execute

    def timed(step: StepInput) -> StepOutput:
        output = execute(step)
        spent[0] += output.decode_seconds
        return output

    llm.engine.worker.execute = timed  # type: ignore[method-assign]
    bench.stories.run(llm)

    def listen(event: Event) -> None:
        if event.kind == "step":
            if not event["prefill_tokens"]:
                found.append((event["seconds"] - spent[0], event["seconds"]))
            spent[0] = 0.0

    llm.engine.events.listeners.append(listen)
    bench.stories.run(llm)
    return found


def _medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def switched_off(bench: Bench) -> list[dict[str, Any]]:
    """Speed-up, about 1, of long answers with drafters that are always wrong and soon switched off."""
    work = Work(STORIES[:1], LONG * bench.tokens)
    script = script_of(bench.plain, work)
    drafters: dict[str, Callable[[int], Drafter]] = {
        "always wrong": lambda v: ScriptedDrafter(script, v, 0.0),
        "random tokens": RandomDrafter,
    }
    return [
        {"drafter": name, "speed_up": speed_up(bench.plain, bench.scripted(make), work, 2 * bench.runs)}
        for name, make in drafters.items()
    ]
