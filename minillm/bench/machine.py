"""The limits of the machine, measured: every other figure is compared with them.

    bytes per second    the cores read from main memory, far more than a cache holds
    FLOP per second     the faster of our matrix product and torch's, with all data in the caches

An operation that must move B bytes and compute F FLOPs takes at least max(B / bandwidth, F / peak): the
roofline (Williams et al., CACM 2009). On a shared machine both limits vary, so they are measured in the run
that uses them.
"""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minillm.ops.contract import Ops
from minillm.ops.huge_pages import empty_bytes
from minillm.ops.registered import path_in_use
from minillm.version import __version__

_BANDWIDTH_BYTES = 512 << 20
_PRODUCT = 768  # rows, inputs and outputs of the product for the peak: about 1 MiB per matrix in bf16


@dataclass(frozen=True)
class Figure:
    """A rate: the median of `runs` measurements, and the lowest and highest one."""

    median: float
    low: float
    high: float
    runs: int


def summarise(rates: Sequence[float]) -> Figure:
    """The median of `rates` and their spread."""
    return Figure(statistics.median(rates), min(rates), max(rates), len(rates))


def measure(rate: Callable[[], float], runs: int) -> Figure:
    """Call `rate` once to warm up, then `runs` times."""
    rate()
    return summarise([rate() for _ in range(runs)])


def measure_in_turns(rates: Sequence[Callable[[], float]], runs: int) -> list[list[float]]:
    """Call all of `rates` once to warm up, then in turns, `runs` times each. Returns the results of each.

    The speed of a shared machine changes from second to second: only measurements close in time can be
    compared.
    """
    for rate in rates:
        rate()
    rounds = [[rate() for rate in rates] for _ in range(runs)]
    return [list(said) for said in zip(*rounds, strict=True)]


def read_bandwidth(runs: int) -> Figure:
    """Bytes per second that this machine's cores read from main memory, over `runs` measurements."""
    return measure(bandwidth_reader(), runs)


def bandwidth_reader() -> Callable[[], float]:
    """A function that measures bytes per second: a sum over 512 MiB, on huge pages as the weights."""
    data = empty_bytes(_BANDWIDTH_BYTES).view(torch.float32).fill_(1)

    def once() -> float:
        start = time.perf_counter()
        data.sum()
        return _BANDWIDTH_BYTES / (time.perf_counter() - start)

    return once


def peak_flops(ops: Ops, dtype: torch.dtype, runs: int) -> Figure:
    """FLOP per second of one large matrix product in `dtype`: the faster of `ops` and torch."""
    x, weight = (torch.randn(_PRODUCT, _PRODUCT).to(dtype) for _ in range(2))
    packed = ops.prepare_weight(weight.clone())
    products = [lambda: ops.linear(x, packed), lambda: torch.nn.functional.linear(x, weight)]

    def rate(product: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            for _ in range(8):
                product()
            return 8 * 2 * _PRODUCT**3 / (time.perf_counter() - start)

        return once

    return max((measure(rate(product), runs) for product in products), key=lambda figure: figure.median)


def describe() -> dict[str, Any]:
    """The machine and the versions, to report with the figures."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cpu_path": path_in_use(),  # of the native kernels
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "minillm": __version__,
    }


def peak_memory() -> int:
    """The peak memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
