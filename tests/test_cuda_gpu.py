"""The CUDA kernels on a GPU: the cases of test_cuda_kernels.py on CUDA tensors, and a model end to end.

What the simulator has shown to be right in meaning is shown here to be right on the chip. Results are held
against float64 like everywhere, and bitwise against each other only (prefill against decode), never
against the simulator.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import oracle
import pytest
import tiny
import torch
from cases import DTYPES, REFERENCE, Case, check, random
from test_cuda_kernels import CASES, SETTINGS
from test_simt_engine import PROMPTS, SHAPE, answers, prefilled, same
from torch import Tensor

from minillm import SamplingParams
from minillm.ops.contract import AttentionMetadata
from minillm.ops.cuda import CudaOps
from minillm.ops.sampling import SamplingBatch, noise_key

pytestmark = pytest.mark.gpu
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])


@pytest.fixture(scope="module")
def ops() -> CudaOps:
    return CudaOps()


def on_gpu(value: Any) -> Any:
    """Tensors, and those inside metadata and lists, on the GPU; strides stay as they are."""
    if isinstance(value, AttentionMetadata):
        return AttentionMetadata(**{f.name: getattr(value, f.name).cuda() for f in fields(value)})
    return value.cuda() if isinstance(value, Tensor) else value


def run(ops: CudaOps, op: str, *arguments: Any, **options: Any) -> Tensor:
    result: Tensor = getattr(ops, op)(*map(on_gpu, arguments), **options)
    return result.cpu()


@each_dtype
def test_rows(ops, dtype):
    for rows, size in ((1, 1), (17, 33), (33, 257), (1, 4096)):
        x, residual = random(rows, size, dtype=dtype), random(rows, size, dtype=dtype, seed=1)
        weight, wide = random(size, dtype=dtype, seed=2), random(rows, 2 * size, dtype=dtype, scale=4)
        exact = oracle.rms_norm(x, weight, 1e-5)
        check(run(ops, "rms_norm", x, weight, eps=1e-5), REFERENCE.rms_norm(x, weight, 1e-5), exact)
        normed, total = (t.cpu() for t in ops.add_rms_norm(x.cuda(), residual.cuda(), weight.cuda(), 1e-5))
        assert torch.equal(total, x + residual)
        check(normed, REFERENCE.rms_norm(total, weight, 1e-5), oracle.rms_norm(total, weight, 1e-5))
        check(run(ops, "silu_mul", wide), REFERENCE.silu_mul(wide), oracle.silu_mul(wide))


@each_dtype
def test_linear(ops, dtype):
    for rows, size, out in [(1, 1, 1), (1, 33, 17), (17, 64, 33), (33, 31, 1), (70, 1024, 257)]:
        x, weight, bias = (
            random(rows, size, dtype=dtype),
            random(out, size, dtype=dtype),
            random(out, dtype=dtype),
        )
        found, expected = run(ops, "linear", x, weight, bias), REFERENCE.linear(x, weight, bias)
        check(found, expected, oracle.linear(x, weight, bias), (rows, size, out))


@each_dtype
def test_rope_and_cache_and_copies(ops, dtype):
    q, k_cache, v_cache, meta, _ = Case([(5, 9), (1, 40), (17, 17)], heads=6, kv_heads=2, dim=64).build(dtype)
    k, v = (random(23, 2, 64, dtype=dtype, seed=s) for s in (7, 8))
    angles = random(64, 32, scale=3)
    cos, sin, caches = angles.cos(), angles.sin(), [k_cache.cuda(), v_cache.cuda()]
    found = ops.rope_and_cache(*map(on_gpu, (q, k, v, cos, sin)), *caches, on_gpu(meta)).cpu()
    expected = REFERENCE.rope_and_cache(q, k, v, cos, sin, k_cache, v_cache, meta)
    check(found, expected, oracle.rope(q, cos[meta.positions], sin[meta.positions]))
    assert torch.equal(caches[1].cpu().nan_to_num(), v_cache.nan_to_num())
    ops.copy_blocks(caches, torch.tensor([0]).cuda(), torch.tensor([1]).cuda())
    assert all(torch.equal(cache[0].nan_to_num(), cache[1].nan_to_num()) for cache in caches)


@each_dtype
@pytest.mark.parametrize("rung", ["v1", "v2", "d1"])
def test_attention(ops, dtype, rung):
    for case in CASES:
        q, k_cache, v_cache, meta, tables = case.build(dtype)
        scale, lens = case.dim**-0.5, ([n for n, _ in case.seqs], [n for _, n in case.seqs])
        found = run(ops, "paged_attention", q, k_cache, v_cache, meta, scale, case.window, rung=rung)
        expected = REFERENCE.paged_attention(q, k_cache, v_cache, meta, scale, case.window)
        check(
            found,
            expected,
            oracle.paged_attention(q, k_cache, v_cache, tables, *lens, scale, case.window),
            case,
        )


@each_dtype
def test_prefill_and_decode_kernels_give_the_same_bits(ops, dtype):
    for case in CASES:
        arguments = case.build(dtype)[:4]
        found = [
            run(ops, "paged_attention", *arguments, 0.2, case.window, rung=rung) for rung in ("v2", "d1")
        ]
        assert torch.equal(*found), case


def test_sample(ops):
    params = [SamplingParams(**options) for options in SETTINGS for _ in range(20)]
    batch = SamplingBatch(
        params, [noise_key(s, 0, 3) for s in range(len(params))], [[0, 5]] * len(params), 990
    )
    logits = random(len(params), 1000, scale=4)
    assert run(ops, "sample", logits, batch).tolist() == REFERENCE.sample(logits, batch).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_end_to_end(tmp_path, dtype):
    config = tiny.config(**SHAPE)
    folder = tiny.make_folder(tmp_path / "model", config, tensors=tiny.weights(config, scale=0.15))
    options = {"device": "cuda", "backend": "native", "kv_memory": "4MiB", "dtype": dtype}
    whole, chunked = tiny.load(folder, **options), tiny.load(folder, **options, prefill_chunk=7)
    batched = answers(whole, PROMPTS)
    assert same(batched, [answers(whole, [prompt])[0] for prompt in PROMPTS])
    assert same(batched, answers(chunked, PROMPTS))
    for prompt, (tokens, decoded) in zip(PROMPTS, batched, strict=True):
        assert torch.equal(decoded, prefilled(whole, prompt + tokens[:-1])[len(prompt) - 1 :])
    if dtype == "float32":
        reference = tiny.load(folder).logits(PROMPTS[3])
        torch.testing.assert_close(whole.logits(PROMPTS[3]), reference, rtol=2e-4, atol=2e-4)
