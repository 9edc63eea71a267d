"""The speed of the engine on this machine, beside the limit of the machine in the same run.

Decode reads every weight once per step, so its limit is memory bandwidth. The bench measures the bandwidth
in turns with decoding and reports the share that decoding reached. Weights count with the bytes in which
they are stored: a float32 model can take half of what its dtype suggests (minillm/ops/cpu.py). Figures are
medians of several runs, with their spread. On a shared machine only ratios from one run are meaningful.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from minillm.bench.machine import (
    bandwidth_reader,
    describe,
    measure,
    measure_in_turns,
    peak_memory,
    summarise,
)
from minillm.bench.parts import Progress, no_progress
from minillm.config import SamplingParams
from minillm.llm import LLM
from minillm.model.costs import kv_bytes_read
from minillm.ops.contract import PackedWeight

_PROMPT = 32


def prefill_rate(llm: LLM, prompt_len: int) -> float:
    """Prompt tokens per second, first token included."""
    start = time.perf_counter()
    llm.generate([make_prompt(llm, prompt_len, 0)], SamplingParams(max_tokens=1, temperature=0))
    return prompt_len / (time.perf_counter() - start)


def decode_rate(llm: LLM, batch: int, num_tokens: int) -> float:
    """Tokens per second of `batch` requests that decode together, without their prefill."""
    engine = llm.engine
    params = SamplingParams(max_tokens=num_tokens + 1, temperature=0, ignore_eos=True)
    for i in range(batch):
        engine.add_request(make_prompt(llm, _PROMPT, i), params)
    while engine.scheduler.waiting or not _all_decoding(llm, batch):
        engine.step()
    start, count = time.perf_counter(), 0
    while engine.has_unfinished_requests():
        count += len(engine.step())
    return count / (time.perf_counter() - start)


def run_bench(
    llm: LLM,
    prompt_len: int,
    num_tokens: int,
    runs: int,
    batches: Sequence[int] = (1, 8),
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """All figures, with a description of the machine. Rates are per second."""
    model, config = llm.engine.model, llm.engine.model.config
    kept = model.decoder.matrices
    weights = model.decoder.step_bytes()
    on_cpu = model.device.type == "cpu"
    read = [bandwidth_reader()] if on_cpu else []
    prefill = measure(lambda: prefill_rate(llm, prompt_len), runs)
    rows: list[dict[str, Any]] = [{"what": f"prefill {prompt_len}", "tokens_per_s": asdict(prefill)}]
    bandwidths: list[float] = []
    for batch in batches:
        progress(len(rows), 1 + len(batches))
        rates, *beside = measure_in_turns([lambda b=batch: decode_rate(llm, b, num_tokens), *read], runs)  # type: ignore[misc]
        figure = summarise(rates)
        row: dict[str, Any] = {"what": f"decode, batch {batch}", "tokens_per_s": asdict(figure)}
        # Weights are read once per step for the whole batch, keys and values once per sequence.
        context = _PROMPT + num_tokens // 2
        own = kv_bytes_read(config, context, model.dtype.itemsize)
        per_token = (weights + batch * own) / batch
        row["bytes_per_s"] = per_token * figure.median
        for found in beside:  # the bandwidths, each measured directly after a rate
            shares = [per_token * rate / limit for rate, limit in zip(rates, found, strict=True)]
            row["share_of_bandwidth"] = asdict(summarise(shares))
            bandwidths += found
        rows.append(row)
    return {
        "model": model.folder.name,
        "parameters": config.num_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": llm.config.quantization,
        "weights": {
            "bytes_per_step": weights,
            "matrices": len(kept),
            "kept_narrow": sum(isinstance(matrix, PackedWeight) and matrix.narrow for matrix in kept),
        },
        "backend": model.decoder.ops.name,
        "machine": describe(),
        "read_bandwidth": asdict(summarise(bandwidths)) if bandwidths else None,
        "rows": rows,
        "peak_memory_bytes": peak_memory(),
    }


def compare(
    plain: LLM, quantized: LLM, prompt_len: int, num_tokens: int, runs: int, batches: Sequence[int]
) -> dict[str, Any]:
    """The rates of the same model with and without quantisation, measured in turns, and their ratio."""
    works = {f"prefill {prompt_len}": partial(prefill_rate, prompt_len=prompt_len)}
    for batch in batches:
        works[f"decode, batch {batch}"] = partial(decode_rate, batch=batch, num_tokens=num_tokens)
    rows = [
        row
        for what, rate in works.items()
        for row in in_turns(what, {"quantized": partial(rate, quantized)}, partial(rate, plain), runs)
    ]
    model = plain.engine.model
    dtype = str(model.dtype).removeprefix("torch.")
    return {"dtype": dtype, "bytes_per_step": model.decoder.step_bytes(), "rows": rows}


def in_turns(
    what: str, ours: Mapping[str, Callable[[], float]], other: Callable[[], float], runs: int
) -> list[dict[str, Any]]:
    """Rates that are measured in turns: a row for each of ours, with its median and its ratio to `other`."""
    *found, peer = measure_in_turns([*ours.values(), other], runs)
    return [
        {
            "what": what,
            "engine": name,
            "tokens_per_s": statistics.median(own),
            "peer_tokens_per_s": statistics.median(peer),
            "ratio": asdict(summarise([a / b for a, b in zip(own, peer, strict=True)])),
        }
        for name, own in zip(ours, found, strict=True)
    ]


def _all_decoding(llm: LLM, batch: int) -> bool:
    requests = llm.engine.scheduler.running
    return len(requests) == batch and not any(r.is_prefilling for r in requests)


def make_prompt(llm: LLM, length: int, salt: int) -> list[int]:
    """Token ids that differ between prompts; their meaning does not change the speed."""
    vocab = llm.engine.model.config.vocab_size
    return [(salt * 7919 + i * 104729 + 1) % vocab for i in range(length)]
