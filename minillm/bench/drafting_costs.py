"""What speculation costs: time in neither model, and a drafter never right once it is switched off."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from minillm.bench.turns import STORIES, Bench, Work, script_of, speed_up
from minillm.engine.decode import decode
from minillm.observe.metrics import summarize
from minillm.speculation.drafts import Drafter
from minillm.speculation.scripted import RandomDrafter, ScriptedDrafter

LONG = 8  # times the usual length: answers in which being switched off must not be felt


def costs(bench: Bench) -> dict[str, Any]:
    """Time outside the models: of a step with drafts, and of a plain one, whose loop and draws are timed."""
    llm = bench.load(draft_model=bench.draft_model, adaptive_draft=False)
    work = bench.stories
    work.run(llm)  # warms up
    found = summarize(work.events(llm)).speculation
    steps = found.verifications or 1  # one sequence at a time
    outside, step = _plain_outside(bench, work)
    drafting = found.bookkeeping_seconds / steps
    return {
        "step_s": found.seconds / steps,
        "outside_s": drafting,
        "outside_share": found.bookkeeping_seconds / (found.seconds or 1.0),
        "outside_per_token_s": drafting / (found.tokens_per_step or 1.0),
        "plain_step_s": step,
        "plain_outside_s": outside,
        "plain_outside_share": outside / step,
        "added_share": (drafting - outside) / (found.seconds / steps or 1.0),
    }


def _plain_outside(bench: Bench, work: Work) -> tuple[float, float]:
    """Seconds of a step without drafts spent outside the decode loop and the draws, and of the whole step."""
    spent = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            spent[0] += time.perf_counter() - start
            return result

        return wrapper

    llm = bench.load(parts={"decode_loop": timed(decode)})
    ops = llm.engine.model.decoder.ops
    ops.sample = timed(ops.sample)  # type: ignore[method-assign]
    work.run(llm)
    spent[0] = 0.0
    steps = [e for e in work.events(llm) if e.kind == "step" and not e["prefill_tokens"]]
    total = sum(e["seconds"] for e in steps)
    return (total - spent[0]) / len(steps), total / len(steps)


def switched_off(bench: Bench) -> list[dict[str, Any]]:
    """Long answers with drafters that are never right, once the controller knows: times faster, about 1."""
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
