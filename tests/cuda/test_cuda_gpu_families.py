"""What model families add, on a GPU; see test_cuda_gpu.py.

The shapes are small: test_cuda_families.py and test_cuda_experts.py have more, in the simulator.
"""

from __future__ import annotations

import families
import oracle
import pytest
import tiny
import torch
from cases import BOUND, CASES, DTYPES, REFERENCE, make_meta, random
from coded_caches import build, empty, raw, views
from test_cuda_gpu import broken_context, on_gpu, ops, run
from test_cuda_gpu_pass import BACKEND, DEVICE

from minillm import SamplingParams
from minillm.config import KV_DTYPES, LayerSpec
from minillm.ops import kv_codes
from minillm.ops.contract import LayerCache, Matrix, RopeTables, Routing

__all__ = ["broken_context", "ops"]  # fixtures
pytestmark = pytest.mark.gpu
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])


@each_dtype
def test_rows(ops, dtype):
    x, weight = random(17, 64, dtype=dtype, scale=2), random(64, dtype=dtype, seed=1)
    for name, *arguments in [
        ("layer_norm", x, weight, weight, 1e-5),
        ("rms_norm", x, weight, 1e-5, 1.0),
        ("softcap", x, 3.0),
        *(("act", x, activation) for activation in ("silu", "gelu", "gelu_tanh", "relu")),
        *(("act_and_mul", x, activation) for activation in ("gelu", "gelu_tanh", "swiglu_clamped")),
    ]:
        expected = getattr(REFERENCE, name)(
            *(t.double() if isinstance(t, torch.Tensor) else t for t in arguments)
        )
        assert oracle.error(run(ops, name, *arguments), expected) <= BOUND[dtype], name


@each_dtype
def test_experts(ops, dtype):
    x, logits = random(17, 64, dtype=dtype), random(17, 33, dtype=dtype, seed=1).mul(2).round()
    matrices = (
        random(33 * 32, 64, dtype=dtype, scale=0.2),
        random(33 * 64, 16, dtype=dtype, seed=2, scale=0.2),
    )
    routing = ops.route(on_gpu(logits), 4, True)
    assert torch.equal(routing.chosen.cpu(), REFERENCE.route(logits, 4, True).chosen)
    on_device = [Matrix(on_gpu(matrix)) for matrix in matrices]
    whole = ops.experts(on_gpu(x), routing, *on_device, "silu")
    exact = [Matrix(matrix.double()) for matrix in matrices]
    expected = REFERENCE.experts(x.double(), Routing(*(t.cpu() for t in routing)), *exact, "silu")
    assert oracle.error(whole.cpu(), expected) <= 2 * BOUND[dtype]
    alone = ops.experts(on_gpu(x[3:4]), Routing(*(t[3:4] for t in routing)), *on_device, "silu")
    assert torch.equal(alone, whole[3:4])


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_captured_step_with_experts_has_the_bits_of_the_step(tmp_path, family):
    folder, params = (
        families.make_folder(tmp_path, family),
        SamplingParams(8, temperature=0.8, seed=1, logprobs=2),
    )
    found = []
    for sizes in ((), (1, 2, 4)):
        llm = tiny.load(folder, device=DEVICE, backend=BACKEND, kv_memory="4MiB", dtype="bfloat16")
        llm.engine.worker.runner._fused.fill_up_to(sizes)
        found.append([(o.token_ids, o.logprobs) for o in llm.generate([[1, 2, 3], [4] * 9, [7, 8]], params)])
    assert found[0] == found[1]


@each_dtype
def test_variant_attention(ops, dtype):
    for case in CASES:
        q, k_cache, v_cache, meta, _ = case.build(dtype)
        spec = LayerSpec(case.window, 0.2, softcap=3.0, sinks=True)
        cache, sinks = LayerCache(k_cache, v_cache), random(case.heads, dtype=dtype)
        arguments = on_gpu(q), LayerCache(*map(on_gpu, cache)), on_gpu(meta), spec, on_gpu(sinks)
        v2, d1 = (ops.variant_attention(*arguments, rung=rung).cpu() for rung in ("v2", "d1"))
        assert torch.equal(v2, d1), case
        expected = REFERENCE.variant_attention(q, cache, meta, spec, sinks)
        assert oracle.error(v2, expected.double()) < 2 * BOUND[dtype], case


@pytest.mark.parametrize("kind", KV_DTYPES)
@each_dtype
def test_keys_and_values_in_8_bits(ops, dtype, kind):
    """Attention over codes, a row alone and in company, and the bytes that are written."""
    for case in CASES:
        built = build(ops, case, dtype, kind)
        cache = LayerCache(*(each.to(DEVICE) for each in built.cache))
        found = ops.paged_attention(
            on_gpu(built.q), *cache, on_gpu(built.meta), case.dim**-0.5, case.window
        ).cpu()
        q_lens, kv_lens = [n for n, _ in case.seqs], [n for _, n in case.seqs]
        exact = oracle.paged_attention(
            built.q, *built.numbers, built.tables, q_lens, kv_lens, case.dim**-0.5, case.window
        )
        assert oracle.error(found, exact) <= BOUND[dtype], case
        meta = on_gpu(make_meta(built.tables[-1:], [1], kv_lens[-1:], case.block_size))
        alone = ops.paged_attention(on_gpu(built.q)[-1:], *cache, meta, case.dim**-0.5, case.window)
        assert torch.equal(alone[0].cpu(), found[-1]), case
    k, v = (random(3, 2, 64, dtype=dtype, seed=s) for s in (1, 2))
    written = LayerCache(*(each.to(DEVICE) for each in empty((1, 16, 2, 64), kind)))
    none, meta = torch.ones(9, 0), make_meta([[0]], [3], [3], 16)
    ops.rope_and_cache(*map(on_gpu, (k, k, v)), RopeTables(on_gpu(none), on_gpu(none)), written, on_gpu(meta))
    for view, rows in zip(views(ops, LayerCache(*(each.cpu() for each in written))), (k, v), strict=True):
        codes, scales = kv_codes.quantize(rows, kv_codes.DTYPES[kind])
        assert torch.equal(raw(view.codes[0, :3]), raw(codes)) and torch.equal(view.scales[0, :3], scales)
