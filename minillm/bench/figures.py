"""The sizes for which each rung's time is predicted, in the headers of the kernels and in tests.

    predicted_line("d1", H100)     Predicted, H100: 357 us for 1 x 4096 keys (bytes in flight), ...

Sizes are those of benchmarks/2026-11-27-h100: bfloat16, heads of 128, matrices of 4096 x 4096.
"""

from __future__ import annotations

import torch

from minillm.bench.chips import Chip
from minillm.bench.traffic import Shape
from minillm.bench.works import LINEAR, Attention, Product, estimate

Job = Attention | Product


def prefill(tokens: int) -> Attention:
    """A prompt, 16 heads of 128."""
    return Attention(Shape(tokens, tokens, 16, 16, 128, torch.bfloat16))


def decode(num_seqs: int, keys: int) -> Attention:
    """One token of each sequence, 32 heads over 8 of 128."""
    return Attention(Shape(1, keys, 32, 8, 128, torch.bfloat16), num_seqs)


def product(rows: int) -> Product:
    """A matrix of 4096 x 4096."""
    return Product(rows, 4096, 4096, torch.bfloat16)


def flops(job: Job) -> int:
    """Floating point operations that the job needs; a kernel may do more."""
    if isinstance(job, Product):
        return 2 * job.rows * job.out * job.size
    return 4 * job.num_seqs * job.shape.num_heads * job.shape.head_dim * sum(job.shape.visible)


_PREFILL = {"1024 tokens": prefill(1024), "8192 tokens": prefill(8192)}
_DECODE = {"1 x 4096 keys": decode(1, 4096), "32 x 4096 keys": decode(32, 4096)}
_LINEAR = {"1 row": product(1), "4096 rows": product(4096)}
FIGURES: dict[str, dict[str, Job]] = {
    **{rung: dict(_PREFILL) for rung in ("v1", "v2", "v3")},
    **{rung: dict(_DECODE) for rung in ("d1", "d2", "d3")},
    **{rung: dict(_LINEAR) for rung in LINEAR},
}


def duration(seconds: float) -> str:
    """Three digits: "13.9 us", "1.17 ms"."""
    scaled, unit = (seconds * 1e3, "ms") if seconds >= 0.9995e-3 else (seconds * 1e6, "us")
    return f"{scaled:.{max(0, 2 - (scaled >= 9.995) - (scaled >= 99.95))}f} {unit}"


def predicted_line(rung: str, chip: Chip) -> str:
    """What the header of a rung's file says of its speed."""
    found = []
    for size, job in FIGURES[rung].items():
        e = estimate(rung, job, chip)
        found.append(f"{duration(e.seconds)} for {size} ({e.bound})")
    return f"Predicted, {chip.name}: {', '.join(found)}."
