"""The CUDA kernels on a real GPU, beside torch's own in the same process; JSON out.

    gpu_bench.py prefill decode --out bench.json    add these sections' rows to the file
    gpu_bench.py --one-of-each                      each kernel once, small: for compute-sanitizer
    gpu_bench.py ... --simulate                     on the simulator, tiny: for tests of this file

Peers: torch's SDPA backends for attention over contiguous keys (the rungs read through a block table, the
peers do not), cuBLAS through torch's matmul, torch's own ops for the rest, and a copy for the memory's
rate. `rel_error` is against float32 in torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_inputs import Paged, paged
from gpu_model import (
    our_rates,
    over_codes,
    quantized_products,
    random_model,
    step_profile,
    transformers_rates,
    whole_step,
)
from gpu_timing import Report, timed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillm import LLM, SamplingParams
from minillm.config import LayerSpec
from minillm.ops.contract import LayerCache, Matrix, RopeTables
from minillm.ops.cuda import CudaOps
from minillm.ops.cuda_rungs import ATTENTION_RUNGS, LINEAR_RUNGS, TENSOR_RUNGS, UNTESTED_RUNGS
from minillm.ops.reference import ReferenceOps
from minillm.ops.sampling import SamplingBatch

PEERS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}
BEYOND_L2 = 256 << 20  # bytes to cycle through, so that nothing is still in the cache


@dataclass
class Bench:
    """Where to run, on what sizes, and whom to tell."""

    ops: CudaOps
    device: str
    report: Report
    full: bool  # sizes for a GPU, not for the simulator

    def random(self, *shape: int) -> Tensor:
        # Made on the CPU when small: compute-sanitizer then watches our kernels and not torch's.
        where = self.device if self.full else "cpu"
        return torch.randn(*shape, dtype=torch.bfloat16, device=where).to(self.device)


# ---- sections -------------------------------------------------------------------------------------


def prefill(bench: Bench) -> None:
    """Whole prompts, 16 heads of 128, causal."""
    heads, dim, scale = (16, 128, 128**-0.5) if bench.full else (2, 64, 64**-0.5)
    for length in (1024, 4096, 8192) if bench.full else (40,):
        p = paged(bench.random, 1, length, length, heads, heads, dim)
        flops = 2 * heads * dim * length * (length + 1)  # half of the square is masked
        what = f"prefill {length}, {heads} heads of {dim}"
        rungs = ("v1", "v2", "v3") if length <= 4096 else ("v2", "v3")
        _attention(bench, what, p, rungs, heads, length, scale, {"tflops": flops / 1e12}, causal=True)


def decode(bench: Bench) -> None:
    """One token each, 32 heads over 8 of 128. Bytes: K and V once per kv head, the least there is."""
    heads, kv_heads, dim = (32, 8, 128) if bench.full else (4, 2, 64)
    for num_seqs, kv_len in ((1, 4096), (32, 4096), (128, 1024)) if bench.full else ((2, 40),):
        what = f"decode {num_seqs} x {kv_len}, {heads} heads over {kv_heads} of {dim}"
        first = paged(bench.random, num_seqs, 1, kv_len, heads, kv_heads, dim)
        sets = [first]
        while bench.full and len(sets) * first.nbytes < BEYOND_L2:
            sets.append(paged(bench.random, num_seqs, 1, kv_len, heads, kv_heads, dim))
        moved = 2 * num_seqs * kv_len * kv_heads * dim * first.k.element_size()
        rate = {"bytes_per_s": moved}
        _attention(bench, what, sets, ("d1", "d2", "d3"), heads, kv_len, dim**-0.5, rate, causal=False)


def rows(bench: Bench) -> None:
    """What reads and writes each element once, beside torch's ops."""
    size = 4096 if bench.full else 64
    for tokens in (1, 4096) if bench.full else (3,):
        x, residual, wide = (bench.random(tokens, n) for n in (size, size, 2 * size))
        weight = bench.random(size)
        calls: dict[str, tuple[int, Callable[[Any], Any]]] = {
            "rms_norm": (2, lambda o, x=x, w=weight: o.rms_norm(x, w, 1e-5)),
            "add_rms_norm": (4, lambda o, x=x, r=residual, w=weight: o.add_rms_norm(x, r, w, 1e-5)),
            "act_and_mul": (3, lambda o, g=wide: o.act_and_mul(g)),
        }
        for op, (times, call) in calls.items():
            for name, ops in (("ours", bench.ops), ("torch", ReferenceOps())):
                run = _rated(lambda c=call, o=ops: c(o), {"bytes_per_s": times * x.nbytes})
                bench.report.measure(f"{op} {tokens} x {size}", name, run)
    _cache_and_sample(bench)


def _cache_and_sample(bench: Bench) -> None:
    tokens, vocab = (512, 32_000) if bench.full else (5, 70)
    p = paged(bench.random, 4, tokens // 4 or 1, tokens // 4 or 1, 4, 2, 64)
    k, v, angles = bench.random(len(p.q), 2, 64), bench.random(len(p.q), 2, 64), torch.ones(tokens, 32)
    rope, cache = RopeTables(*[angles.to(bench.device)] * 2), LayerCache(p.k, p.v)
    logits = bench.random(8, vocab)
    params = SamplingParams(top_k=50, top_p=0.9)
    batch = SamplingBatch([params] * 8, list(range(8)), [[]] * 8, vocab)
    for name, ops in (("ours", bench.ops), ("torch", ReferenceOps())):
        rotate = _rated(lambda o=ops: o.rope_and_cache(p.q, k, v, rope, cache, p.meta), {})
        bench.report.measure(f"rope_and_cache {len(p.q)} x (4 + 2 + 2) x 64", name, rotate)
        # Both make small tensors of the batch on the CPU: nothing a graph could record.
        draw = _rated(lambda o=ops: o.sample(logits, batch), {}, record=False)
        bench.report.measure(f"sample 8 x {vocab}, top-k and top-p", name, draw)


def matrices(bench: Bench) -> None:
    """The tiled linear beside cuBLAS, and a copy beside which decode's bytes can be read."""
    size = 4096 if bench.full else 40
    for tokens in (1, 8, 64, 512, 4096) if bench.full else (3,):
        x, weights = bench.random(tokens, size), [bench.random(size, size)]
        while bench.full and len(weights) * weights[0].nbytes < BEYOND_L2:
            weights.append(bench.random(size, size))
        exact = F.linear(x.float(), weights[0].float())
        amounts = {"tflops": 2 * tokens * size * size / 1e12, "bytes_per_s": weights[0].nbytes}
        rungs = [(r, partial(bench.ops.linear, rung=r)) for r in LINEAR_RUNGS]
        for name, linear in (*rungs, ("cuBLAS", F.linear)):
            runs = [lambda f=linear, x=x, w=w: f(x, w) for w in weights]
            bench.report.measure(f"linear {tokens} x {size} x {size}", name, _rated(runs, amounts, exact))
    data = torch.empty(1 << 30 if bench.full else 64, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(data)
    copy = _rated(lambda: target.copy_(data), {"bytes_per_s": 2 * data.nbytes})
    bench.report.measure("copy 1 GiB", "torch", copy)


def model(bench: Bench) -> None:
    """The model that ships, on each backend: one request, and sixteen."""

    def generate(backend: str, count: int) -> dict[str, Any]:
        llm = LLM(device=bench.device, backend=backend)
        params = SamplingParams(max_tokens=64 if bench.full else 1, temperature=0, ignore_eos=True)
        prompts = ["Once upon a time there was a dragon" if bench.full else "A"] * count
        llm.generate(prompts[:1], params)
        metrics = [output.metrics for output in llm.generate(prompts, params)]
        keys = ("ttft", "tpot", "e2e")
        return {key: max(getattr(m, key) or 0.0 for m in metrics) for key in keys} | {"requests": count}

    for count in (1, 16) if bench.full else (1,):
        for name, backend in (("ours", "native" if bench.full else "simt"), ("torch", "reference")):
            bench.report.measure(f"generate 64 x {count}", name, lambda b=backend, c=count: generate(b, c))


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """The variable has this value inside; it was not set before."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def step(bench: Bench) -> None:
    """The shape of a 1 B model with random weights, bfloat16: the engine, and transformers beside it."""
    with random_model(bench.full, bench.device) as folder:
        for name, backend in (("ours", "native" if bench.full else "simt"), ("torch", "reference")):
            rates = lambda b=backend: our_rates(folder, bench.device, b, bench.full)  # noqa: E731
            bench.report.measure("1 B shape", name, rates)
        native = "native" if bench.full else "simt"
        # cuBLAS gives up contract C2: the order of its sums depends on the number of rows.
        fast = lambda: our_rates(folder, bench.device, native, bench.full, {"linear": F.linear})  # noqa: E731
        bench.report.measure("1 B shape", "cuBLAS", fast)
        with environment("MINILLM_TENSOR_CORES", "0"):
            plain = lambda: our_rates(folder, bench.device, native, bench.full)  # noqa: E731
            bench.report.measure("1 B shape", "v2, d1, l2", plain)
        if bench.full:
            bench.report.measure("1 B shape, a prefill and 5 steps", "ours", lambda: step_profile(folder))
        beside = lambda: transformers_rates(folder, bench.device, bench.full)  # noqa: E731
        bench.report.measure("1 B shape", "transformers", beside)


SECTIONS = {f.__name__: f for f in (prefill, decode, rows, matrices, model, step)}


# ---- parts of them --------------------------------------------------------------------------------


def _attention(
    bench: Bench,
    what: str,
    sets: Paged | list[Paged],
    rungs: tuple[str, ...],
    heads: int,
    kv_len: int,
    scale: float,
    amounts: dict[str, float],
    causal: bool,
) -> None:
    """A row for each rung and each peer, the first set's result held against float32."""
    sets = sets if isinstance(sets, list) else [sets]
    dense = [p.dense(heads, kv_len) for p in sets]
    options = {
        "is_causal": causal,
        "scale": scale,
        "enable_gqa": dense[0][0].shape[1] != dense[0][1].shape[1],
    }
    with sdpa_kernel(SDPBackend.MATH):
        exact = F.scaled_dot_product_attention(*(t[:2].float() for t in dense[0]), **options)
    flat = exact.transpose(1, 2).flatten(0, 1)
    for rung in rungs:
        runs = [
            lambda p=p, r=rung: bench.ops.paged_attention(p.q, p.k, p.v, p.meta, scale, rung=r) for p in sets
        ]
        # v1 asks the GPU for the longest sequence, so it cannot be recorded.
        bench.report.measure(what, rung, _rated(runs, amounts, flat, record=rung != "v1"))
    for name, backend in PEERS.items():
        peers = [lambda d=d: F.scaled_dot_product_attention(*d, **options) for d in dense]

        def run(backend: SDPBackend = backend, peers: list[Callable[[], Tensor]] = peers) -> dict[str, Any]:
            with sdpa_kernel(backend):
                return _rated(peers, amounts, exact)()

        bench.report.measure(what, name, run)


def _rated(
    runs: Callable[[], Any] | list[Callable[[], Any]],
    amounts: dict[str, float],
    exact: Tensor | None = None,
    record: bool = True,
) -> Callable[[], dict[str, Any]]:
    """What measures `runs`: seconds, each of `amounts` per second, the error where `exact` is known."""
    turns = runs if isinstance(runs, list) else [runs]

    def measure() -> dict[str, Any]:
        row: dict[str, Any] = {}
        if exact is not None:  # of the first two sequences alone: all of them in float32 would be large
            found = turns[0]()[: len(exact)].float()
            row["rel_error"] = float((found - exact).norm() / exact.norm())
        time = timed(turns, record)
        return row | {name: amount / time["median_s"] for name, amount in amounts.items()} | time

    return measure


def one_of_each(bench: Bench) -> None:
    """Every kernel once, on shapes with odd ends."""
    ops, p = bench.ops, paged(bench.random, 3, 33, 70, 4, 2, 64)
    for rung in (*ATTENTION_RUNGS, *TENSOR_RUNGS):
        ops.paged_attention(p.q, p.k, p.v, p.meta, 0.125, rung=rung)
    if not p.q.is_cuda:  # a GPU refuses these
        for rung in UNTESTED_RUNGS:
            ops.paged_attention(p.q, p.k, p.v, p.meta, 0.125, rung=rung)
    x, weight = bench.random(17, 70), bench.random(33, 70)
    for rung in ("l1", "l2", "l3"):
        ops.linear(x, weight, rung=rung)
    ops.linear(bench.random(17, 72), bench.random(33, 72), rung="l4")
    for rows in (1, 12, 30, 70):  # each shape of tile of the tensor-core kernel, but for the largest
        ops.linear(bench.random(rows, 72), bench.random(33, 72), rung="l5")
    ops.rms_norm(x, weight[0], 1e-5)
    ops.add_rms_norm(x, x.clone(), weight[0], 1e-5)
    ops.layer_norm(x, weight[0], weight[0], 1e-5)
    ops.act_and_mul(x)
    routing = ops.route(x, 3, True)
    stacked = Matrix(bench.random(70 * 16, 70)), Matrix(bench.random(70 * 80, 7))
    ops.experts(x, routing, *stacked, "gelu")
    stacked = Matrix(bench.random(70 * 16, 72)), Matrix(bench.random(70 * 80, 8))
    ops.experts(bench.random(17, 72), routing, *stacked, "gelu")  # on tensor cores
    quantized_products(ops, x, routing)
    wide = paged(bench.random, 1, 33, 70, 2, 1, 256)
    spec, sinks = LayerSpec(None, 0.06, softcap=30.0, sinks=True), bench.random(2)
    for rung in ("v2", "d1"):
        ops.variant_attention(wide.q, LayerCache(wide.k, wide.v), wide.meta, spec, sinks, rung=rung)
    k, v, angles = bench.random(99, 2, 64), bench.random(99, 2, 64), torch.ones(80, 32).to(bench.device)
    rope = RopeTables(angles, angles)
    ops.rope_and_cache(p.q, k, v, rope, LayerCache(p.k, p.v), p.meta)
    over_codes(ops, p.q, k, v, rope, p.meta)
    zero, one = (torch.tensor([i]).to(bench.device) for i in range(2))
    ops.copy_blocks([p.k, p.v], zero, one)
    params = SamplingParams(top_k=5, top_p=0.9)
    ops.sample(x, SamplingBatch([params] * 17, list(range(17)), [[]] * 17, 70))
    nodes, starts = torch.arange(5).to(bench.device), torch.tensor([0, 5]).to(bench.device)
    ops.verify_coupled(nodes, nodes - 1, nodes - 1, starts)
    probs = torch.full((3, 3, 301), 1 / 301).to(bench.device)
    uniforms = torch.full((3, 3), 0.5, dtype=torch.float64).to(bench.device)
    ops.verify_draft(nodes[:2].expand(3, 2), probs[:, :2], probs, uniforms)
    whole_step(ops, bench.device)  # kernels that only a pass launches


# ---- command line ---------------------------------------------------------------------------------


def machine_facts(ops: CudaOps) -> dict[str, Any]:
    """What the figures belong to."""
    facts = {"torch": torch.__version__, "python": sys.version.split()[0], "kernels": ops.kernel_set}
    if not torch.cuda.is_available():
        return facts | {"gpu": "none: simulated"}
    gpu = torch.cuda.get_device_properties(0)
    size = {"memory_bytes": gpu.total_memory, "multiprocessors": gpu.multi_processor_count}
    return facts | {"gpu": gpu.name, "capability": [gpu.major, gpu.minor], "cuda": torch.version.cuda, **size}


def make(simulate: bool, out: Path | None) -> Bench:
    ops: CudaOps
    if simulate:
        from minillm.ops.simt import SimtOps

        ops = SimtOps()
    else:
        ops = CudaOps()
    return Bench(ops, "cpu" if simulate else "cuda", Report(out, machine_facts(ops)), full=not simulate)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one-of-each", action="store_true")
    parser.add_argument("--simulate", action="store_true")
    args = parser.parse_args(argv)
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}: {', '.join(SECTIONS)}")
    if not args.simulate and not torch.cuda.is_available():
        print("gpu_bench.py: torch sees no GPU here (--simulate needs none)", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    bench = make(args.simulate, args.out)
    if args.one_of_each:
        bench.full = False  # inputs are made on the CPU
        one_of_each(bench)
        if not args.simulate:
            torch.cuda.synchronize()
        return 0
    for name in args.sections or SECTIONS:
        SECTIONS[name](bench)
    return int(bench.report.failed({"ours", *ATTENTION_RUNGS, *TENSOR_RUNGS, *LINEAR_RUNGS}))


if __name__ == "__main__":
    sys.exit(main())
