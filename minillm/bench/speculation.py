"""The gain and the costs of speculation on this machine, compared with the same engine without drafts.

    pair         acceptance of the draft model, time of a draft, and speed-up, for each draft length K
    acceptance   speed-up with a drafter of a chosen acceptance that costs nothing (`ScriptedDrafter`)
    floor        time of a pass over 1 to 64 rows, beside the time of reading the weights once: while reading
                 takes most of the time, further rows are nearly free, and so are drafts
    batches      the batch size from which on drafts lose: more sequences already fill those rows
    ngram        prompt lookup when the answer repeats the prompt, and when it does not
    costs        time outside both models; and the cost of a drafter that is always wrong, once switched off

Sampling is greedy. Beside each speed-up the report has the expectation of Leviathan et al. (arXiv
2211.17192): the tokens per step, (1 - a^(k+1)) / (1 - a) if each token is accepted with probability a,
divided by the measured cost of a step in plain steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from minillm.bench.drafting_costs import costs, switched_off
from minillm.bench.machine import describe, measure, read_bandwidth
from minillm.bench.parts import Progress, no_progress, run_parts
from minillm.bench.turns import (
    COPY,
    DEPTH,
    STORIES,
    Bench,
    Load,
    Work,
    decode_seconds,
    expected_tokens,
    level_seconds,
    script_of,
    speed_up,
    token_acceptance,
)
from minillm.engine.logits import borrowed_blocks
from minillm.llm import LLM
from minillm.observe.metrics import summarize
from minillm.speculation.scripted import ScriptedDrafter
from minillm.worker.step import SequenceRows

LOOKED_UP = 8  # most tokens of a draft by prompt lookup
LENGTHS = (1, 2, 3, 5, 8)
STEPS = 5  # the acceptances are 0, 1 / STEPS, ..., 1
ROWS = (1, 2, 4, 8, 16, 32, 64)
FREE = 1.25  # rows are called nearly free if the pass takes at most this many times as long as with one row


def run_speculation(
    load: Load,
    draft_model: str,
    tokens: int,
    runs: int,
    batches: Sequence[int],
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """All parts. `load(**options)` makes an engine with these options changed."""

    def load_uncached(**changes: Any) -> LLM:
        return load(prefix_caching=False, **changes)  # every run has the same prompts

    bench = Bench(load_uncached, load_uncached(), draft_model, tokens, runs)
    model = bench.plain.engine.model
    parts: dict[str, Callable[[], Any]] = {
        "pair": lambda: pair(bench),
        "acceptance": lambda: acceptance(bench),
        "floor": lambda: floor(bench),
        "batches": lambda: batched(bench, batches),
        "ngram": lambda: ngram(bench),
        "costs": lambda: costs(bench),
        "switched_off": lambda: switched_off(bench),
    }
    return {
        "model": model.folder.name,
        "draft_model": draft_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": model.decoder.ops.name,
        "machine": describe(),
        **run_parts(parts, progress),
    }


# ---- the pair ---------------------------------------------------------------------------------------


def pair(bench: Bench) -> dict[str, Any]:
    """Figures of the draft model at the default length, a row per length, and the controller's speed-up."""
    step = decode_seconds(bench.stories.events(bench.plain))
    rows = [_pair_row(bench, step, k) for k in LENGTHS]
    adaptive = bench.load(draft_model=bench.draft_model)
    usual = bench.load(draft_model=bench.draft_model, adaptive_draft=False)
    events = bench.stories.events(usual)
    found = summarize(events).speculation
    level = level_seconds(events)
    return {
        "num_draft_tokens": usual.config.num_draft_tokens,
        "acceptance": found.acceptance,
        "acceptance_by_position": found.acceptance_by_position,
        "plain_step_s": step,
        "level_s": level,
        "level_over_step": level / step,
        "rows": rows,
        "adaptive": speed_up(bench.plain, adaptive, bench.stories, bench.runs),
    }


def _pair_row(bench: Bench, plain_step: float, k: int) -> dict[str, Any]:
    llm = bench.load(draft_model=bench.draft_model, num_draft_tokens=k, adaptive_draft=False)
    faster = speed_up(bench.plain, llm, bench.stories, bench.runs)
    return {"k": k, "speed_up": faster, **_facts(bench.stories, llm, plain_step, k)}


def _facts(work: Work, llm: LLM, plain_step: float, k: int) -> dict[str, Any]:
    """Figures from the events of a run: tokens and cost per step, its parts, the expected speed-up."""
    events = work.events(llm)
    found, stands = summarize(events).speculation, token_acceptance(events)
    cost, seconds = decode_seconds(events) / plain_step, found.seconds or 1.0
    return {
        "token_acceptance": stands,
        "tokens_per_step": found.tokens_per_step,
        "cost": cost,
        "expected_speed_up": expected_tokens(stands, k) / cost,
        "draft_share": found.draft_seconds / seconds,
        "verify_share": found.verify_seconds / seconds,
        "bookkeeping_share": found.bookkeeping_seconds / seconds,
    }


# ---- acceptance, and the memory's floor -------------------------------------------------------------


def acceptance(bench: Bench) -> list[dict[str, Any]]:
    """Speed-up of drafts that cost nothing, for several acceptances."""
    work, script = bench.stories, script_of(bench.plain, bench.stories)
    step, rows = decode_seconds(work.events(bench.plain)), []
    for share in (i / STEPS for i in range(STEPS + 1)):
        llm = bench.scripted(lambda v, a=share: ScriptedDrafter(script, v, a), adaptive_draft=False)  # type: ignore[misc]
        faster = speed_up(bench.plain, llm, work, bench.runs)
        rows.append({"acceptance": share, "speed_up": faster, **_facts(work, llm, step, DEPTH)})
    return rows


def floor(bench: Bench) -> dict[str, Any]:
    """Seconds of a pass by number of rows, and of reading the weights once; how many rows are nearly free."""
    engine, model = bench.plain.engine, bench.plain.engine.model
    context = min(64, model.max_model_len - max(ROWS))
    with borrowed_blocks(engine.memory, context + max(ROWS)) as block_table:
        seconds = {n: _pass_seconds(bench, block_table, context, n) for n in ROWS}
    on_cpu = model.device.type == "cpu"
    weights = model.decoder.step_bytes()
    return {
        "weight_bytes": weights,
        "read_weights_s": weights / read_bandwidth(bench.runs).median if on_cpu else None,
        "rows": [{"rows": n, "seconds": s, "over_one_row": s / seconds[1]} for n, s in seconds.items()],
        "nearly_free_rows": max(n for n, s in seconds.items() if s <= FREE * seconds[1]),
    }


def _pass_seconds(bench: Bench, block_table: list[int], context: int, count: int) -> float:
    """Median seconds of a pass of the target over `count` rows of one sequence, with all logits."""
    rows = [SequenceRows([1] * count, context, block_table)]
    runner = bench.plain.engine.worker.runner

    def once() -> float:
        start = time.perf_counter()
        runner.all_logits(rows)[0, 0].item()  # waits until a GPU has finished
        return time.perf_counter() - start

    return measure(once, 10 * bench.runs).median


# ---- batches ----------------------------------------------------------------------------------------


def batched(bench: Bench, batches: Sequence[int]) -> dict[str, Any]:
    """Speed-up by batch size, with drafts of the default length and with the controller."""
    fixed = bench.load(draft_model=bench.draft_model, adaptive_draft=False)
    adaptive = bench.load(draft_model=bench.draft_model)
    rows = []
    for batch in batches:
        work = Work([STORIES[i % len(STORIES)] for i in range(batch)], bench.tokens, batch)
        rows.append(
            {
                "batch": batch,
                "fixed": speed_up(bench.plain, fixed, work, bench.runs),
                "adaptive": speed_up(bench.plain, adaptive, work, bench.runs),
            }
        )
    return {
        "num_draft_tokens": fixed.config.num_draft_tokens,
        "rows": rows,
        "fixed_loses_from": loses_from(rows, "fixed"),
        "adaptive_loses_from": loses_from(rows, "adaptive"),
    }


def loses_from(rows: Sequence[dict[str, Any]], name: str) -> int | None:
    """The batch size from which on every speed-up is below 1; None if the largest batch still gains."""
    losing = None
    for row in reversed(rows):
        if row[name]["median"] >= 1:
            break
        losing = row["batch"]
    return losing


# ---- prompt lookup ----------------------------------------------------------------------------------


def ngram(bench: Bench) -> list[dict[str, Any]]:
    """Prompt lookup on a text that repeats itself, and on stories that do not.

    Drafts have up to `LOOKED_UP` tokens: a lookup costs almost nothing, only the rows of the target cost
    time.
    """
    llm, rows = bench.load(draft_model="ngram", num_draft_tokens=LOOKED_UP), []
    for what, work in (("copying", Work([COPY], 2 * bench.tokens)), ("free text", bench.stories)):
        faster = speed_up(bench.plain, llm, work, bench.runs)
        found = summarize(work.events(llm)).speculation
        rows.append(
            {
                "what": what,
                "speed_up": faster,
                "drafted": found.drafted,
                "acceptance": found.acceptance,
                "tokens_per_step": found.tokens_per_step,
            }
        )
    return rows
