"""The CUDA kernels on a real GPU, beside torch's own in the same process; JSON out.

    python scripts/gpu_bench.py --out bench.json       medians, with bytes and FLOPs a second
    python scripts/gpu_bench.py --one-of-each          each kernel once, small: for compute-sanitizer

Peers: torch's SDPA backends (flash, cuDNN, math) for attention over contiguous keys, cuBLAS through
torch's matmul, and a copy for the memory's rate. The rungs read through a block table, the peers do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillm import LLM, SamplingParams
from minillm.errors import MinillmError
from minillm.ops.contract import AttentionMetadata
from minillm.ops.cuda import CudaOps
from minillm.ops.sampling import SamplingBatch

PEERS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}
BLOCK = 16


def seconds(run: Callable[[], Any], repeats: int = 20) -> dict[str, float]:
    """Median, lowest and highest time of one call, by CUDA events, after three calls to warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return {"median_s": statistics.median(times), "low_s": min(times), "high_s": max(times)}


def paged(num_seqs: int, q_len: int, kv_len: int, heads: int, kv_heads: int, dim: int) -> tuple[Any, ...]:
    """q, caches and metadata of sequences alike, their pages shuffled."""
    per_seq = -(-kv_len // BLOCK)
    table = torch.randperm(num_seqs * per_seq, device="cuda").int().view(num_seqs, per_seq)
    cache = (num_seqs * per_seq, BLOCK, kv_heads, dim)
    half = {"dtype": torch.bfloat16, "device": "cuda"}
    k, v, q = (
        torch.randn(cache, **half),
        torch.randn(cache, **half),
        torch.randn(num_seqs * q_len, heads, dim, **half),
    )
    none = torch.zeros(num_seqs * q_len, dtype=torch.int64, device="cuda")
    starts = torch.arange(num_seqs + 1, dtype=torch.int32, device="cuda") * q_len
    kv_lens = torch.full((num_seqs,), kv_len, dtype=torch.int32, device="cuda")
    return q, k, v, AttentionMetadata(none, none, table, starts, kv_lens)


def attention(ops: CudaOps) -> list[dict[str, Any]]:
    """Prefill of whole prompts and decode of one token each, heads of 128."""
    rows = []
    for length in (1024, 4096):
        heads, dim = 16, 128
        q, k, v, meta = paged(1, length, length, heads, heads, dim)
        flops = 2 * heads * dim * length * (length + 1)  # half of the square is masked
        for rung in ("v1", "v2"):
            time = seconds(
                lambda q=q, k=k, v=v, m=meta, r=rung: ops.paged_attention(q, k, v, m, 0.088, rung=r), 5
            )
            rows.append(
                {"what": f"prefill {length}", "by": rung, "tflops": flops / time["median_s"] / 1e12, **time}
            )
        dense = [t.view(-1, heads, dim)[:length].transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
        for name, backend in PEERS.items():
            try:
                with sdpa_kernel(backend):
                    time = seconds(lambda d=dense: F.scaled_dot_product_attention(*d, is_causal=True))
            except RuntimeError as error:
                rows.append({"what": f"prefill {length}", "by": name, "error": str(error)[:200]})
                continue
            rows.append(
                {"what": f"prefill {length}", "by": name, "tflops": flops / time["median_s"] / 1e12, **time}
            )
    for num_seqs, kv_len in ((1, 4096), (32, 4096)):
        q, k, v, meta = paged(num_seqs, 1, kv_len, 32, 8, 128)
        time = seconds(lambda q=q, k=k, v=v, m=meta: ops.paged_attention(q, k, v, m, 0.088, rung="d1"))
        moved = 2 * num_seqs * kv_len * 8 * 128 * 2  # K and V once per kv head: the least there is
        what = f"decode {num_seqs} x {kv_len}"
        rows.append({"what": what, "by": "d1", "bytes_per_s": moved / time["median_s"], **time})
    return rows


def matrices(ops: CudaOps) -> list[dict[str, Any]]:
    """The tiled linear beside cuBLAS, and a copy beside which decode's bytes can be read."""
    rows = []
    for tokens in (1, 512):
        x = torch.randn(tokens, 2048, dtype=torch.bfloat16, device="cuda")
        weight = torch.randn(2048, 2048, dtype=torch.bfloat16, device="cuda")
        for name, run in (("tiled", ops.linear), ("cuBLAS", F.linear)):
            time = seconds(lambda r=run, x=x, w=weight: r(x, w))
            rate = 2 * tokens * 2048 * 2048 / time["median_s"] / 1e12
            rows.append({"what": f"linear {tokens} x 2048 x 2048", "by": name, "tflops": rate, **time})
    data = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(data)
    time = seconds(lambda: target.copy_(data))
    rows.append(
        {"what": "copy 1 GiB", "by": "torch", "bytes_per_s": 2 * data.nbytes / time["median_s"], **time}
    )
    return rows


def end_to_end() -> list[dict[str, Any]]:
    """The model that ships, if it is there, on each backend: decode rate of one request."""
    rows = []
    for backend in ("native", "reference"):
        try:
            llm = LLM(device="cuda", backend=backend)
        except MinillmError as error:
            rows.append({"what": "generate", "by": backend, "error": str(error)[:200]})
            continue
        params = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True)
        llm.generate("Once upon a time", params)
        metrics = llm.generate("Once upon a time", params)[0].metrics
        rows.append({"what": "generate 64", "by": backend, "metrics": repr(metrics)})
    return rows


def one_of_each(ops: CudaOps) -> None:
    """Every kernel once, on shapes with odd ends."""
    q, k, v, meta = paged(3, 33, 70, 4, 2, 64)
    for rung in ("v1", "v2", "d1"):
        ops.paged_attention(q, k, v, meta, 0.125, rung=rung)
    x, weight = (torch.randn(n, 70, dtype=torch.bfloat16, device="cuda") for n in (17, 33))
    ops.linear(x, weight)
    ops.add_rms_norm(x, x.clone(), weight[0].contiguous(), 1e-5)
    ops.silu_mul(x)
    angles = torch.ones(80, 32, device="cuda")
    ops.rope_and_cache(
        q, *(t.flatten(0, 1)[: len(q)].contiguous() for t in (k, v)), angles, angles, k, v, meta
    )
    ops.copy_blocks([k, v], torch.tensor([0]).cuda(), torch.tensor([1]).cuda())
    params = SamplingParams(top_k=5, top_p=0.9)
    ops.sample(x, SamplingBatch([params] * 17, list(range(17)), [[]] * 17, 70))
    nodes, p = torch.arange(5).cuda(), torch.full((3, 3, 301), 1 / 301, device="cuda")
    ops.verify_coupled(nodes, nodes - 1, nodes - 1, torch.tensor([0, 5]).cuda())
    ops.verify_draft(nodes[:2].expand(3, 2), p[:, :2], p, torch.full((3, 3), 0.5, device="cuda").double())
    torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one-of-each", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_bench.py: torch sees no GPU here", file=sys.stderr)
        return 1
    ops = CudaOps()
    if args.one_of_each:
        one_of_each(ops)
        return 0
    report = {
        "gpu": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "kernels": ops.kernel_set,
        "rows": [*attention(ops), *matrices(ops), *end_to_end()],
    }
    text = json.dumps(report, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
