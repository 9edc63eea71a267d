"""Each op alone, at the sizes of one model: time, bytes, FLOPs, and the share of the roofline it reaches.

                 1 row (decode)              8 rows                  512 rows (prefill)
    linear       reading W: bandwidth        still reading W         arithmetic
    attention    reading K and V             the same                arithmetic and e^x
    the rest     the cost of a call          the cost of a call      reading and writing activations

Weights are taken in turn from several copies that together exceed every cache, like the layers of a model.
Activations stay in the caches, as in a model. Weights and the memory for the bandwidth test use huge pages.
`bytes` is the least an op must move. Weights are random in all bits of the dtype, so float32 weights are
not stored in 16 bits here, unlike those of most checkpoints.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from minillm.bench.machine import describe, peak_flops, read_bandwidth
from minillm.bench.parts import Progress, no_progress
from minillm.config import ExpertSpec, ModelConfig, SamplingParams
from minillm.model.rope import rope_tables
from minillm.ops.contract import AttentionMetadata, LayerCache, Matrix, Ops, RopeTables, expert_rows
from minillm.ops.huge_pages import HugePages
from minillm.ops.reference import ReferenceOps
from minillm.ops.sampling import SamplingBatch

_CONTEXT = 512  # keys in the cache of each sequence
_BLOCK_SIZE = 16
_DRAFTED = 4  # tokens of each request, for verification
_COLD_BYTES = 128 << 20  # weights taken in turn: several times the last-level cache of a laptop
_SECONDS = 0.05  # one measurement lasts at least as long


@dataclass(frozen=True)
class Job:
    """One op at one size. `make` returns an endless iterator of calls, each ready to run, for a backend."""

    op: str
    size: str
    bytes: int
    flops: int
    make: Callable[[Ops], Iterator[Callable[[], object]]]


def run_kernels(
    config: ModelConfig,
    ops: Ops,
    dtype: torch.dtype,
    runs: int,
    rows: tuple[int, ...] = (1, 8, 512),
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Every op at the sizes of `config`, for `ops` and for the reference. Times are in seconds."""
    reference = ReferenceOps()
    bandwidth, peak = read_bandwidth(runs), peak_flops(ops, dtype, runs)
    found = list[dict[str, Any]]()
    todo = list(jobs(config, dtype, rows))
    for job in todo:
        progress(len(found), len(todo))
        mine, theirs = (_seconds(job.make(o), runs) for o in (ops, reference))
        least = max(job.bytes / bandwidth.median, job.flops / peak.median)
        found.append(
            {
                "op": job.op,
                "size": job.size,
                "bytes": job.bytes,
                "flops": job.flops,
                "seconds": mine,
                "reference_seconds": theirs,
                "bound": "memory"
                if job.bytes / bandwidth.median >= job.flops / peak.median
                else "arithmetic",
                "share_of_roofline": least / mine,
            }
        )
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": ops.kernel_set,
        "machine": describe(),
        "read_bandwidth": asdict(bandwidth),
        "peak_flops": asdict(peak),
        "rows": found,
    }


def jobs(config: ModelConfig, dtype: torch.dtype, rows: tuple[int, ...]) -> Iterator[Job]:
    """The ops of a layer, then those around the layers, for each number of rows."""
    width, hidden, inner = dtype.itemsize, config.hidden_size, config.intermediate_size
    q, kv, vocab = config.q_size, config.kv_size, config.vocab_size

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    def simple(op: str, n: int, elements: int, flops: int, *arguments: object) -> Job:
        return Job(op, f"{n}", elements * width, flops, lambda o: cycle([lambda: getattr(o, op)(*arguments)]))

    up = (2 if config.gated else 1) * inner
    has_mlp = any(layer.experts is None for layer in config.layers)
    for n in rows:
        for name, size, out in (
            ("qkv", hidden, q + 2 * kv),
            ("o", q, hidden),
            ("gate_up", hidden, up),
            ("down", inner, hidden),
            ("head", hidden, vocab),
        ):
            if name == "head" and n > 64:
                continue  # in prefill the head runs only for the last row
            if name in ("gate_up", "down") and not has_mlp:
                continue
            yield _linear_job(name, n, size, out, dtype)
        norm, x = random(hidden), random(n, hidden)
        if config.norm_kind == "layer":
            yield simple("layer_norm", n, 2 * n * hidden, 7 * n * hidden, x, norm, random(hidden), 1e-5)
        else:
            yield simple("rms_norm", n, 2 * n * hidden, 4 * n * hidden, x, norm, 1e-5)
            yield simple("add_rms_norm", n, 4 * n * hidden, 5 * n * hidden, x, random(n, hidden), norm, 1e-5)
        op = "act_and_mul" if config.gated else "act"
        if has_mlp:
            yield simple(op, n, n * (up + inner), 10 * n * inner, random(n, up), config.activation)
        if config.logits_softcap is not None and n <= 64:
            yield simple("softcap", n, 2 * n * vocab, 10 * n * vocab, random(n, vocab), config.logits_softcap)
        for experts in dict.fromkeys(layer.experts for layer in config.layers if layer.experts is not None):
            yield from _expert_jobs(config, experts, dtype, n)
        yield from _attention_jobs(config, dtype, n)
        if n <= 64:
            yield _sample_job(n, vocab, dtype)
            yield simple("finite_rows", n, n * vocab, 0, random(n, vocab))
            yield from _verify_jobs(n, vocab)
    ids = torch.randint(vocab, (rows[-1],))
    table = random(vocab, hidden)
    yield Job(
        "embedding",
        f"{rows[-1]}",
        2 * len(ids) * hidden * width,
        0,
        lambda o: _prepared(o, table, lambda packed: o.embedding(ids, packed)),
    )
    caches = [random(64, _BLOCK_SIZE, config.num_key_value_heads, config.head_dim) for _ in range(2)]
    one = torch.tensor([1]), torch.tensor([2])
    yield simple("copy_blocks", 1, 4 * _BLOCK_SIZE * kv, 0, caches, *one)


def cold_copies(nbytes: int) -> int:
    """How many copies of `nbytes` the caches of a processor cannot hold together."""
    return max(1, _COLD_BYTES // nbytes)


def _linear_job(name: str, n: int, size: int, out: int, dtype: torch.dtype) -> Job:
    x = torch.randn(n, size).to(dtype)
    copies = cold_copies(size * out * dtype.itemsize)

    def make(ops: Ops) -> Iterator[Callable[[], object]]:
        pages = HugePages()
        own = (pages.empty((out, size), dtype).copy_(torch.randn(out, size)) for _ in range(copies))
        weights = [ops.prepare_weight(weight) for weight in own]
        return cycle([lambda w=w: ops.linear(x, w) for w in weights])

    moved = (size * out + n * (size + out)) * dtype.itemsize
    return Job(f"linear {name}", f"{n}x{size}x{out}", moved, 2 * n * size * out, make)


def _attention_jobs(config: ModelConfig, dtype: torch.dtype, n: int) -> Iterator[Job]:
    """Up to 64 rows are that many sequences that decode. More rows are one prompt."""
    decoding = n <= 64
    num_seqs, kv_len, q_len = (n, _CONTEXT, 1) if decoding else (1, n, n)
    blocks = -(-kv_len // _BLOCK_SIZE)
    shape = (num_seqs * blocks, _BLOCK_SIZE, config.num_key_value_heads, config.head_dim)
    positions = torch.arange(kv_len - q_len, kv_len).repeat(num_seqs)
    first = torch.arange(num_seqs).repeat_interleave(q_len) * blocks * _BLOCK_SIZE
    meta = AttentionMetadata(
        positions=positions,
        slot_mapping=first + positions,
        block_table=torch.arange(num_seqs * blocks, dtype=torch.int32).view(num_seqs, blocks),
        query_start=torch.arange(0, n + 1, q_len, dtype=torch.int32),
        kv_len=torch.full((num_seqs,), kv_len, dtype=torch.int32),
    )
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q, k, v = (torch.randn(n, count, dim).to(dtype) for count in (heads, kv_heads, kv_heads))
    k_cache, v_cache = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    angles = rope_tables(config.ropes[0], dim, kv_len) if config.ropes else torch.empty(2, kv_len, 0)
    tables = RopeTables(*angles)
    rope = (q, k, v, tables, LayerCache(k_cache, v_cache), meta)
    moved = 2 * n * (config.q_size + 2 * config.kv_size) * dtype.itemsize
    turned = 3 * n * (config.q_size + config.kv_size)
    yield Job("rope_and_cache", f"{n}", moved, turned, lambda o: cycle([lambda: o.rope_and_cache(*rope)]))
    pairs = n * kv_len if decoding else n * (n + 1) // 2
    moved = 2 * (num_seqs * kv_len * config.kv_size + n * config.q_size) * dtype.itemsize
    size = f"{num_seqs}x{kv_len} keys" if decoding else f"{n} causal"
    flops, cache = 4 * pairs * config.q_size, LayerCache(k_cache, v_cache)
    spec = next((layer for layer in config.layers if layer.softcap is not None or layer.sinks), None)
    op = "paged_attention"
    arguments: tuple[object, ...] = (q, *cache, meta, dim**-0.5)
    if spec is not None:
        sinks = torch.randn(heads).to(dtype) if spec.sinks else None
        op, arguments = "variant_attention", (q, cache, meta, replace(spec, window=None), sinks)
    yield Job(op, size, moved, flops, lambda o: cycle([lambda: getattr(o, op)(*arguments)]))


def _expert_jobs(config: ModelConfig, spec: ExpertSpec, dtype: torch.dtype, n: int) -> Iterator[Job]:
    """The router's choice and the chosen experts. All tokens may choose different experts."""
    hidden, chosen = config.hidden_size, n * spec.per_token
    logits = torch.randn(n, spec.count).to(dtype)
    routed = logits, spec.per_token, spec.renormalize
    moved = logits.nbytes + 12 * chosen  # a number and a weight for each
    yield Job("route", f"{n}x{spec.count}", moved, 0, lambda o: cycle([lambda: o.route(*routed)]))
    x = torch.randn(n, hidden).to(dtype)
    gate_up = torch.randn(spec.count * expert_rows(2 * spec.size), hidden).to(dtype)
    down = torch.randn(spec.count * expert_rows(hidden), spec.size).to(dtype)

    def make(ops: Ops) -> Iterator[Callable[[], object]]:
        first, second = (Matrix(ops.prepare_weight(weight.clone())) for weight in (gate_up, down))
        routing = ops.route(*routed)
        return cycle([lambda: ops.experts(x, routing, first, second, config.activation)])

    each = 3 * spec.size * hidden
    moved = min(spec.count, chosen) * each * dtype.itemsize
    yield Job("experts", f"{n}x{spec.per_token} of {spec.count}", moved, 2 * chosen * each, make)


def _sample_job(n: int, vocab: int, dtype: torch.dtype) -> Job:
    logits = torch.randn(n, vocab).to(dtype) * 4
    params = SamplingParams(temperature=0.8, top_p=0.95)
    batch = SamplingBatch([params] * n, list(range(n)), [[]] * n, vocab)
    moved = n * vocab * dtype.itemsize
    return Job("sample top_p", f"{n}x{vocab}", moved, 0, lambda o: cycle([lambda: o.sample(logits, batch)]))


def _verify_jobs(n: int, vocab: int) -> Iterator[Job]:
    """Chains of `_DRAFTED` tokens: coupled, all are accepted; with rejection, the first one is replaced."""
    nodes = n * (_DRAFTED + 1)
    chain = torch.arange(-1, _DRAFTED).repeat(n)
    tree = torch.zeros(nodes, dtype=torch.int64), torch.zeros(nodes, dtype=torch.int64), chain
    start = torch.arange(0, nodes + 1, _DRAFTED + 1)
    yield Job(
        "verify_coupled",
        f"{n} chains of {_DRAFTED}",
        8 * (5 * nodes + n),
        0,
        lambda o: cycle([lambda: o.verify_coupled(*tree, start)]),
    )
    q, p = (torch.randn(n, _DRAFTED + more, vocab).softmax(-1) for more in (0, 1))
    draft, uniforms = q.argmax(-1), torch.full((n, _DRAFTED + 1), 0.5, dtype=torch.float64)
    p[:, 0].scatter_(1, draft[:, :1], 0.0)
    yield Job(
        "verify_draft",
        f"{n}x{vocab}",
        8 * n * vocab,
        3 * n * vocab,
        lambda o: cycle([lambda: o.verify_draft(draft, q, p, uniforms)]),
    )


def _prepared(ops: Ops, weight: Tensor, call: Callable[[Any], object]) -> Iterator[Callable[[], object]]:
    packed = ops.prepare_weight(weight.clone())
    return cycle([lambda: call(packed)])


@torch.inference_mode()
def _seconds(calls: Iterator[Callable[[], object]], runs: int) -> float:
    """Median seconds of one call, over `runs` measurements. Each measurement repeats it for `_SECONDS`."""

    def elapsed(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            next(calls)()
        return time.perf_counter() - start

    elapsed(1)
    count = max(1, round(_SECONDS / max(elapsed(2) / 2, 1e-7)))
    return statistics.median(elapsed(count) / count for _ in range(runs))
