"""The engine under load: the gain from continuous batching, chunked prefill and the prefix cache, in one run.

    batching    64 requests of different lengths: continuous batches, and static batches padded to the longest
    gaps        time between tokens of running streams while a long prompt is prefilled, in chunks or whole
    overhead    the share of a step that is scheduling and building the batch
    sharing     several questions about each tale, with and without the prefix cache; and the cost of the
                cache when no prefix is shared
    allocation  paged and contiguous memory on a production trace (`bench/allocation.py`)

The tales of `sharing` and the trace of `allocation` are not part of the package (`--data`); without them
these parts are left out. The ratios of `batching` and `nothing_to_share` come from runs taken in turns.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minillm.bench.allocation import compare, read_trace
from minillm.bench.engine import make_prompt
from minillm.bench.machine import peak_flops
from minillm.bench.parts import Progress, no_progress, run_parts
from minillm.config import SamplingParams
from minillm.errors import UsageError
from minillm.llm import LLM
from minillm.model.costs import prefill_flops
from minillm.observe.events import Event
from minillm.observe.metrics import percentile, summarize

REQUESTS, BATCH = 64, 32
STREAMS, CHUNK, LONG_PROMPT = 8, 128, 20
TALES, QUESTIONS, CONVERSATIONS, ANSWER = 8, 12, 4, 8
TRACE_SLOTS = 64 * 4096

Load = Callable[..., LLM]


def run_serving(load: Load, runs: int, data: Path | None, progress: Progress = no_progress) -> dict[str, Any]:
    """All parts. `load(**options)` makes an engine with these options changed."""
    parts: dict[str, Callable[[], Any]] = {
        "batching": lambda: batching(load, runs),
        "gaps": lambda: gaps(load, runs),
        "overhead": lambda: overhead(load),
        "nothing_to_share": lambda: nothing_to_share(load, runs),
    }
    if data:
        parts["sharing"] = lambda: sharing(load, data)
        parts["allocation"] = lambda: _allocation(data)
    return run_parts(parts, progress)


def _allocation(data: Path) -> list[dict[str, Any]]:
    trace = read_trace(data / "traces" / "azure_conversation.csv")
    return [asdict(a) for a in compare(trace, 16, TRACE_SLOTS)]


# ---- batching ---------------------------------------------------------------------------------------


def ragged_work() -> list[tuple[int, int]]:
    """(prompt, answer) lengths of 64 requests: most are short, a few long, as in conversations."""
    rng = random.Random(0)
    return [
        (max(4, int(rng.lognormvariate(3.6, 0.8))), min(300, max(4, int(rng.lognormvariate(3.6, 0.9)))))
        for _ in range(REQUESTS)
    ]


def batching(load: Load, runs: int) -> dict[str, Any]:
    """Useful tokens per second of both, and the share of the peak matmul rate of continuous batching."""
    llm, work = load(max_num_seqs=BATCH, prefix_caching=False), ragged_work()
    useful = sum(answer for _, answer in work)
    flops = sum(prefill_flops(llm.engine.model.config, prompt + answer) for prompt, answer in work)
    continuous, static = list[float](), list[float]()
    for _ in range(runs + 1):
        continuous.append(_seconds(llm, work))
        batches = [work[i : i + BATCH] for i in range(0, REQUESTS, BATCH)]
        static.append(sum(_seconds(llm, _padded(batch)) for batch in batches))
    ratios = [s / c for c, s in zip(continuous[1:], static[1:], strict=True)]  # the first warms up
    peak = peak_flops(llm.engine.model.decoder.ops, llm.engine.model.dtype, runs)
    seconds = statistics.median(continuous[1:])
    return {
        "continuous_tokens_per_s": useful / seconds,
        "static_tokens_per_s": useful / statistics.median(static[1:]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "share_of_matmul_rate": flops / seconds / peak.median,
    }


def _padded(batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The work of a static batch: every row is padded to the longest."""
    longest = max(prompt for prompt, _ in batch), max(answer for _, answer in batch)
    return [longest] * len(batch)


def _seconds(llm: LLM, work: list[tuple[int, int]]) -> float:
    prompts = [make_prompt(llm, prompt, i) for i, (prompt, _) in enumerate(work)]
    params = [SamplingParams(max_tokens=answer, temperature=0, ignore_eos=True) for _, answer in work]
    start = time.perf_counter()
    llm.generate(prompts, params)
    return time.perf_counter() - start


# ---- gaps -------------------------------------------------------------------------------------------


def gaps(load: Load, runs: int) -> dict[str, Any]:
    """p99 of the gap between a stream's tokens while a prompt of 20 chunks is prefilled: median over runs."""
    chunked = load(prefill_chunk=CHUNK, prefix_caching=False)
    whole = load(prefill_chunk=CHUNK * LONG_PROMPT, max_num_batched_tokens=2 * CHUNK * LONG_PROMPT,
                 prefix_caching=False)  # fmt: skip
    rows = [(*_gaps(chunked), _gaps(whole)[0]) for _ in range(runs + 1)][1:]
    gap, quiet, chunk, unchunked = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "p99_chunked_s": gap,
        "quiet_step_s": quiet,
        "chunk_s": chunk,
        "bound_s": quiet + chunk,
        "p99_whole_s": unchunked,
    }


def _gaps(llm: LLM) -> tuple[float, float, float]:
    """(p99 gap during the prefill, a step without prefill, the slowest step that only prefills a chunk)."""
    engine = llm.engine
    forever = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
    prompt = make_prompt(llm, CHUNK * LONG_PROMPT, STREAMS)
    alone = _steps(llm, lambda: engine.add_request(prompt, SamplingParams(max_tokens=1)))
    streams = [engine.add_request(make_prompt(llm, 32, i), forever) for i in range(STREAMS)]
    for _ in range(10):
        engine.step()
    quiet = statistics.median(_timed(engine.step) for _ in range(10))
    during = _steps(llm, lambda: engine.add_request(prompt, SamplingParams(max_tokens=1)))
    for request_id in streams:
        engine.abort_request(request_id)
    engine.step()
    return percentile(during, 0.99), quiet, max(alone)


def _steps(llm: LLM, submit: Callable[[], str]) -> list[float]:
    """Seconds of each step from submitting a request to its end: these are the gaps of all other streams."""
    request_id, seconds, finished = submit(), list[float](), set[str]()
    while request_id not in finished:
        start = time.perf_counter()
        finished |= {output.request_id for output in llm.engine.step() if output.finished}
        seconds.append(time.perf_counter() - start)
    return seconds


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# ---- overhead ---------------------------------------------------------------------------------------


def overhead(load: Load) -> dict[str, Any]:
    """Seconds of scheduling and of building the batch in a decode step of 32 sequences, and their share."""
    llm = load(max_num_seqs=BATCH, prefix_caching=True)
    engine = llm.engine
    for i in range(BATCH):
        params = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
        engine.add_request(make_prompt(llm, 32, i), params)
    for _ in range(10):
        engine.step()
    spent = {"schedule": 0.0, "build": 0.0}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            spent[name] += time.perf_counter() - start
            return result

        return wrapper

    engine.scheduler.schedule = timed("schedule", engine.scheduler.schedule)  # type: ignore[method-assign]
    engine.worker.runner.metadata = timed("build", engine.worker.runner.metadata)  # type: ignore[method-assign]
    steps = 100
    total = sum(_timed(engine.step) for _ in range(steps))
    return {
        "schedule_s": spent["schedule"] / steps,
        "build_s": spent["build"] / steps,
        "step_s": total / steps,
        "share": (spent["schedule"] + spent["build"]) / total,
    }


# ---- sharing ----------------------------------------------------------------------------------------


def tales_with_questions(llm: LLM, data: Path) -> tuple[list[tuple[list[int], list[list[int]]]], int, int]:
    """([(tale, its questions)] as token ids, number of tales, number of tales longer than the context)."""
    tokenizer = llm.tokenizer
    try:
        text = (data / "fairytaleqa" / "stories.txt").read_text(encoding="utf-8")
        lines = (data / "fairytaleqa" / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"no tales: {error}", "--data must be a folder that contains fairytaleqa/") from None
    tales = [tokenizer.encode(tale.strip()) for tale in text.split("<|endoftext|>") if tale.strip()]
    questions: dict[str, list[list[int]]] = {}
    for row in map(json.loads, lines):
        asked = f"\n\nQuestion: {row['question']}\nAnswer:"
        questions.setdefault(row["story"], []).append(tokenizer.encode(asked, add_special_tokens=False))
    room = llm.engine.model.max_model_len - ANSWER
    pairs = zip(tales, questions.values(), strict=True)  # both files are in the same order
    fitting = [(tale, asked) for tale, asked in pairs if len(tale) + max(map(len, asked)) <= room]
    return fitting, len(tales), len(tales) - len(fitting)


def sharing(load: Load, data: Path) -> dict[str, Any]:
    """Prefill tokens and time to the first token, with and without the prefix cache."""
    llms = {True: load(prefix_caching=True), False: load(prefix_caching=False)}
    fitting, in_all, left_out = tales_with_questions(llms[True], data)
    chosen = fitting[:: max(1, len(fitting) // TALES)][:TALES]
    work = [[tale + question for question in asked[:QUESTIONS]] for tale, asked in chosen]
    results = {}
    for cached, llm in llms.items():
        summary = summarize(_converse(llm, work))
        results[cached] = (summary.prefill_tokens, percentile(summary.ttft, 0.5), summary.hit_rate)
    return {
        "tales": len(chosen),
        "tales_in_all": in_all,
        "tales_left_out": left_out,
        "requests": sum(map(len, work)),
        "prefill_tokens": results[True][0],
        "prefill_tokens_uncached": results[False][0],
        "fewer_prefill_tokens": results[False][0] / results[True][0],
        "p50_ttft_s": results[True][1],
        "p50_ttft_uncached_s": results[False][1],
        "lower_p50_ttft": results[False][1] / results[True][1],
        "hit_rate": results[True][2],
    }


def _converse(llm: LLM, work: list[list[list[int]]]) -> list[Event]:
    """Several readers at once. Each asks about one tale after another, one question at a time."""
    params = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True)
    readers = [[q for tale in work[i::CONVERSATIONS] for q in tale] for i in range(CONVERSATIONS)]
    asking: dict[str, list[list[int]]] = {}
    with llm.engine.events.record() as events:
        for reader in readers:
            asking[llm.engine.add_request(reader.pop(0), params)] = reader
        while llm.engine.has_unfinished_requests():
            for output in llm.engine.step():
                if output.finished and (reader := asking.pop(output.request_id)):
                    asking[llm.engine.add_request(reader.pop(0), params)] = reader
    return events


def nothing_to_share(load: Load, runs: int) -> dict[str, Any]:
    """Time with the prefix cache divided by time without it, for prompts that share no prefix."""
    llms = {True: load(prefix_caching=True), False: load(prefix_caching=False)}
    work = ragged_work()
    ratios = list[float]()
    for i in range(2 * runs + 1):
        seconds = {}
        for cached in (True, False) if i % 2 else (False, True):
            memory = llms[cached].engine.memory
            memory.make_room(memory.available)  # evict the prompts of the previous round
            seconds[cached] = _seconds(llms[cached], work)
        ratios.append(seconds[True] / seconds[False])
    ratios = ratios[1:]
    return {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
