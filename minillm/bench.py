"""How fast the engine is on this machine, beside what the machine can do, measured in one run.

Decode reads every weight once a step, so its limit is memory bandwidth: the bench measures that too
and says which share of it decoding reached. Figures are medians of several runs with their spread;
on a shared machine only ratios taken in one run mean anything.
"""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from minillm.config import SamplingParams
from minillm.engine.envelope import package_version
from minillm.llm import LLM
from minillm.model.costs import decode_bytes

_BANDWIDTH_BYTES = 512 << 20
_PROMPT = 32


@dataclass(frozen=True)
class Figure:
    """A rate: the median of `runs` measurements, with the lowest and the highest."""

    median: float
    low: float
    high: float
    runs: int


def measure(rate: Callable[[], float], runs: int) -> Figure:
    """Call `rate` once to warm up, then `runs` times."""
    rate()
    rates = [rate() for _ in range(runs)]
    return Figure(statistics.median(rates), min(rates), max(rates), runs)


def read_bandwidth(runs: int) -> Figure:
    """Bytes per second this machine's cores read from main memory: summing 512 MiB of float32."""
    data = torch.ones(_BANDWIDTH_BYTES // 4)

    def once() -> float:
        start = time.perf_counter()
        data.sum()
        return _BANDWIDTH_BYTES / (time.perf_counter() - start)

    return measure(once, runs)


def prefill_rate(llm: LLM, prompt_len: int) -> float:
    """Prompt tokens per second, first token included."""
    start = time.perf_counter()
    llm.generate([_prompt(llm, prompt_len, 0)], SamplingParams(max_tokens=1, temperature=0))
    return prompt_len / (time.perf_counter() - start)


def decode_rate(llm: LLM, batch: int, num_tokens: int) -> float:
    """Tokens per second of `batch` requests decoding together, their prefill not counted."""
    engine = llm.engine
    params = SamplingParams(max_tokens=num_tokens + 1, temperature=0, ignore_eos=True)
    for i in range(batch):
        engine.add_request(_prompt(llm, _PROMPT, i), params)
    while engine.scheduler.waiting or not _all_decoding(llm, batch):
        engine.step()
    start, count = time.perf_counter(), 0
    while engine.has_unfinished_requests():
        count += len(engine.step())
    return count / (time.perf_counter() - start)


def run_bench(llm: LLM, prompt_len: int, num_tokens: int, runs: int) -> dict[str, Any]:
    """All figures, with the machine they belong to. Rates are per second."""
    model, config = llm.engine.model, llm.engine.model.config
    width = model.dtype.itemsize
    on_cpu = model.device.type == "cpu"
    bandwidth = read_bandwidth(runs) if on_cpu else None
    prefill = measure(lambda: prefill_rate(llm, prompt_len), runs)
    decode = {batch: measure(lambda b=batch: decode_rate(llm, b, num_tokens), runs) for batch in (1, 8)}  # type: ignore[misc]
    rows: list[dict[str, Any]] = [{"what": f"prefill {prompt_len}", "tokens_per_s": asdict(prefill)}]
    for batch, figure in decode.items():
        row: dict[str, Any] = {"what": f"decode, batch {batch}", "tokens_per_s": asdict(figure)}
        # Weights are read once a step for the whole batch, each sequence's keys and values by itself.
        context = _PROMPT + num_tokens // 2
        weights = decode_bytes(config, 0, width, width)
        own = decode_bytes(config, context, width, width) - weights
        step_bytes = weights + batch * own
        row["bytes_per_s"] = step_bytes * figure.median / batch
        if bandwidth:
            row["share_of_bandwidth"] = row["bytes_per_s"] / bandwidth.median
        rows.append(row)
    return {
        "model": model.folder.name,
        "parameters": config.num_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": model.decoder.ops.name,
        "machine": _machine(),
        "read_bandwidth": asdict(bandwidth) if bandwidth else None,
        "rows": rows,
        "peak_memory_bytes": _peak_memory(),
    }


def _all_decoding(llm: LLM, batch: int) -> bool:
    requests = [r for group in llm.engine.scheduler.running for r in group.requests]
    return len(requests) == batch and not any(r.is_prefilling for r in requests)


def _prompt(llm: LLM, length: int, salt: int) -> list[int]:
    """Token ids that differ from prompt to prompt; what they mean does not change the speed."""
    vocab = llm.engine.model.config.vocab_size
    return [(salt * 7919 + i * 104729 + 1) % vocab for i in range(length)]


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "minillm": package_version(),
    }


def _peak_memory() -> int:
    """The most memory this process ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
