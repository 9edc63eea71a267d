"""The CUDA kernels on a GPU: the cases of test_cuda_kernels.py on CUDA tensors, and a model end to end.

The simulator shows that the kernels are right by our reading of CUDA; these tests show it on the chip.
Results are compared with float64, and prefill is compared bitwise with decode, but nothing is compared with
the simulator. The tests need the simulator only where it replaces the GPU (conftest.py).
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import oracle
import pytest
import tiny
import torch
from cases import (
    CASES,
    DTYPES,
    REFERENCE,
    SETTINGS,
    TENSOR_CASES,
    Case,
    check,
    make_meta,
    random,
    silu_roundings,
)
from company import PROMPTS, SHAPE, answers, same
from torch import Tensor

from minillm import SamplingParams
from minillm.ops.contract import AttentionMetadata, LayerCache, RopeTables
from minillm.ops.cuda import CudaOps
from minillm.ops.cuda_rungs import ATTENTION_RUNGS, TENSOR_RUNGS
from minillm.ops.sampling import SamplingBatch, noise_key

pytestmark = pytest.mark.gpu
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
ON_GPU = torch.cuda.is_available()
DEVICE, BACKEND = ("cuda", "native") if ON_GPU else ("cpu", "simt")
needs_chip = pytest.mark.skipif(not ON_GPU, reason="the simulator has no streams, and not the memory")


@pytest.fixture(scope="module")
def ops() -> CudaOps:
    if ON_GPU:
        return CudaOps()
    from minillm.ops.simt import SimtOps

    return SimtOps()


@pytest.fixture(autouse=True)
def broken_context():
    """After an illegal access the process cannot use CUDA any more: xdist starts another one, pytest ends."""
    yield
    if not ON_GPU:
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        pytest.exit(f"the CUDA context is broken, so no later test can run: {error}", 1)


def on_gpu(value: Any) -> Any:
    """Moves a tensor, or the tensors of metadata, to the GPU; strides are kept, with their gaps."""
    if isinstance(value, AttentionMetadata):
        return AttentionMetadata(**{f.name: on_gpu(getattr(value, f.name)) for f in fields(value)})
    if not isinstance(value, Tensor):
        return value
    whole = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
    return whole.to(DEVICE).as_strided(value.shape, value.stride(), value.storage_offset())


def run(ops: CudaOps, op: str, *arguments: Any, **options: Any) -> Tensor:
    result: Tensor = getattr(ops, op)(*map(on_gpu, arguments), **options)
    return result.cpu()


# ---- op by op -------------------------------------------------------------------------------------


@each_dtype
def test_rows(ops, dtype):
    for rows, size in ((1, 1), (17, 33), (33, 257), (1, 4096)):
        x, residual = random(rows, size, dtype=dtype), random(rows, size, dtype=dtype, seed=1)
        weight, wide = random(size, dtype=dtype, seed=2), random(rows, 2 * size, dtype=dtype, scale=4)
        exact = oracle.rms_norm(x, weight, 1e-5)
        check(run(ops, "rms_norm", x, weight, eps=1e-5), REFERENCE.rms_norm(x, weight, 1e-5), exact)
        normed, total = (t.cpu() for t in ops.add_rms_norm(*map(on_gpu, (x, residual, weight)), 1e-5))
        assert torch.equal(total, x + residual)
        check(normed, REFERENCE.rms_norm(total, weight, 1e-5), oracle.rms_norm(total, weight, 1e-5))
        check(run(ops, "act_and_mul", wide), REFERENCE.act_and_mul(wide), oracle.silu_mul(wide))


@each_dtype
def test_linear(ops, dtype):
    large = [(70, 1024, 257)] if ON_GPU else []
    for rows, size, out in [(1, 1, 1), (1, 33, 17), (17, 64, 33), (33, 31, 1), *large]:
        x, weight = random(rows, size, dtype=dtype), random(out, size, dtype=dtype)
        bias = random(out, dtype=dtype)
        found, expected = run(ops, "linear", x, weight, bias), REFERENCE.linear(x, weight, bias)
        check(found, expected, oracle.linear(x, weight, bias), (rows, size, out))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
def test_linear_on_tensor_cores(ops, dtype):
    large = [(1, 4096, 2048), (16, 2048, 8192), (512, 2048, 4096), (1030, 1096, 5001)] if ON_GPU else []
    for rows, size, out in [(1, 8, 1), (5, 40, 17), (9, 136, 33), (33, 72, 50), (70, 200, 65), *large]:
        x, weight = random(rows, size, dtype=dtype), random(out, size, dtype=dtype, seed=1)
        bias = random(out, dtype=dtype, seed=2)
        exact = oracle.linear(x, weight, bias)
        found = run(ops, "linear", x, weight, bias, rung="l5")
        check(found, REFERENCE.linear(x, weight, bias), exact, (rows, size, out))
        unrounded = run(ops, "linear", x, weight, bias, rung="l5", float_out=True)
        assert oracle.error(unrounded, exact) < 1e-4  # tensor cores cut off what an addition cannot hold


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
def test_a_rows_bits_do_not_depend_on_the_batch_on_tensor_cores(ops, dtype):
    """In float32, where a sum in another order shows; every tile has a turn, 128 x 128 on a GPU alone."""
    rows, size, out = (512, 4096, 4096) if ON_GPU else (70, 136, 20)
    x, weight = random(rows, size, dtype=dtype), random(out, size, dtype=dtype, seed=1)
    whole = run(ops, "linear", x, weight, rung="l5", float_out=True)
    for count in (1, 7, 8, 9, 16, 17, 33, 70):
        for part in (slice(0, count), slice(rows - count, rows)):
            found = run(ops, "linear", x[part], weight, rung="l5", float_out=True)
            assert torch.equal(found, whole[part]), (count, part)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
def test_silu_is_rounded_before_it_is_multiplied(ops, dtype):
    x, once, twice, is_clear = silu_roundings(dtype)
    assert torch.equal(run(ops, "act_and_mul", x)[is_clear], twice[is_clear])
    assert (once != twice)[is_clear].any(), "control"


@each_dtype
def test_a_row_of_linear_does_not_depend_on_the_others(ops, dtype):
    x, weight = random(49, 257, dtype=dtype), random(35, 257, dtype=dtype, seed=1)
    whole = run(ops, "linear", x, weight)
    for first, count in [(0, 1), (48, 1), (5, 16), (5, 17)]:
        assert torch.equal(run(ops, "linear", x[first : first + count], weight), whole[first : first + count])


@each_dtype
def test_rope_and_cache_and_copies(ops, dtype):
    q, k_cache, v_cache, meta, _ = Case([(5, 9), (1, 40), (17, 17)], heads=6, kv_heads=2, dim=64).build(dtype)
    k, v = (random(23, 3, 64, dtype=dtype, seed=s)[:, 1:] for s in (7, 8))  # strided
    angles = random(64, 32, scale=3)
    rope, caches = RopeTables(angles.cos(), angles.sin()), [on_gpu(k_cache.clone()), on_gpu(v_cache.clone())]
    on_device = RopeTables(*map(on_gpu, rope)), LayerCache(*caches)
    found = ops.rope_and_cache(*map(on_gpu, (q, k, v)), *on_device, on_gpu(meta)).cpu()
    expected = REFERENCE.rope_and_cache(q, k, v, rope, LayerCache(k_cache, v_cache), meta)
    check(found, expected, oracle.rope(q, *(table[meta.positions] for table in rope)))
    assert torch.equal(caches[1].cpu().nan_to_num(), v_cache.nan_to_num())
    ops.copy_blocks(caches, on_gpu(torch.tensor([0])), on_gpu(torch.tensor([1])))
    assert all(torch.equal(cache[0].nan_to_num(), cache[1].nan_to_num()) for cache in caches)


@each_dtype
@pytest.mark.parametrize("rung", ATTENTION_RUNGS)
def test_attention(ops, dtype, rung):
    for case in CASES:
        q, k_cache, v_cache, meta, tables = case.build(dtype)
        scale, lens = case.dim**-0.5, ([n for n, _ in case.seqs], [n for _, n in case.seqs])
        found = run(ops, "paged_attention", q, k_cache, v_cache, meta, scale, case.window, rung=rung)
        expected = REFERENCE.paged_attention(q, k_cache, v_cache, meta, scale, case.window)
        exact = oracle.paged_attention(q, k_cache, v_cache, tables, *lens, scale, case.window)
        check(found, expected, exact, case)


@each_dtype
def test_prefill_and_decode_kernels_give_the_same_bits(ops, dtype):
    for case in CASES:
        arguments = (*case.build(dtype)[:4], 0.2, case.window)
        found = [run(ops, "paged_attention", *arguments, rung=rung) for rung in ("v2", "d1")]
        assert torch.equal(*found), case


LARGE_CASES = [
    Case([(1100, 1100), (300, 2000), (1, 3000)], heads=8, kv_heads=2, dim=128),
    Case([(1, kv) for kv in (4096, 1, 700, 513, 2049)], heads=32, kv_heads=8, dim=128),
    Case([(700, 1500), (8, 1300)], heads=12, kv_heads=4, dim=64, window=600),
]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
@pytest.mark.parametrize("rung", ["v3", "d3"])
def test_attention_on_tensor_cores(ops, dtype, rung):
    for case in [*TENSOR_CASES, *(LARGE_CASES if ON_GPU else [])]:
        q, k_cache, v_cache, meta, tables = case.build(dtype)
        scale, lens = case.dim**-0.5, ([n for n, _ in case.seqs], [n for _, n in case.seqs])
        found = run(ops, "paged_attention", q, k_cache, v_cache, meta, scale, case.window, rung=rung)
        expected = REFERENCE.paged_attention(q, k_cache, v_cache, meta, scale, case.window)
        exact = oracle.paged_attention(q, k_cache, v_cache, tables, *lens, scale, case.window)
        check(found, expected, exact, case)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
def test_the_two_kernels_on_tensor_cores_give_the_same_bits(ops, dtype):
    for case in [*TENSOR_CASES, *(LARGE_CASES if ON_GPU else [])]:
        arguments = (*case.build(dtype)[:4], 0.2, case.window)
        found = [run(ops, "paged_attention", *arguments, rung=rung) for rung in ("v3", "d3")]
        assert torch.equal(*found), case


def test_sample(ops):
    params = [SamplingParams(**options) for options in SETTINGS for _ in range(20 if ON_GPU else 1)]
    keys, seen = [noise_key(s, 0, 3) for s in range(len(params))], [[0, 5]] * len(params)
    batch = SamplingBatch(params, keys, seen, 990)
    logits = random(len(params), 1000, scale=4)
    assert run(ops, "sample", logits, batch).tolist() == REFERENCE.sample(logits, batch).tolist()


def test_nothing_to_do_is_no_launch(ops):
    """In CUDA a launch with zero blocks is an error."""
    none, weight = on_gpu(torch.empty(0, 32)), on_gpu(random(16, 32))
    assert ops.linear(none, weight).shape == (0, 16)
    assert ops.rms_norm(none, weight[0], 1e-5).shape == (0, 32)
    assert ops.act_and_mul(none).shape == (0, 16)
    assert ops.sample(none, SamplingBatch([], [], [], 32)).shape == (0,)
    q, k_cache, v_cache, meta, _ = Case([(0, 5)], heads=2, kv_heads=1, dim=32).build(torch.float32)
    for rung in (None, *ATTENTION_RUNGS):
        assert run(ops, "paged_attention", q, k_cache, v_cache, meta, 1.0, rung=rung).shape == (0, 2, 32)


# ---- what only a GPU has --------------------------------------------------------------------------


@needs_chip
def test_kernels_run_on_the_current_stream(ops):
    """They run after the work that was queued on the stream before them."""
    x, weight = torch.zeros(4, 32, device=DEVICE), torch.eye(32, device=DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        x.fill_(3)
        y = ops.linear(x, weight)
    side.synchronize()
    assert (y == 3).all()


@needs_chip
@pytest.mark.parametrize("rung", [None, "v3", "d3"])
def test_kernels_can_be_recorded_in_a_graph(ops, rung):
    case = Case([(1, 70), (1, 9)], heads=4, kv_heads=2, dim=64)
    q, k_cache, v_cache, meta, _ = map(on_gpu, case.build(torch.bfloat16))
    expected = ops.paged_attention(q, k_cache, v_cache, meta, 0.125, rung=rung)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.paged_attention(q, k_cache, v_cache, meta, 0.125, rung=rung)
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)


@needs_chip
@pytest.mark.parametrize("rung", [*ATTENTION_RUNGS, *TENSOR_RUNGS])
def test_a_cache_of_more_than_two_to_the_31_numbers(ops, rung):
    """The last blocks give the same results as in a small cache; a 32-bit offset would read elsewhere."""
    num_blocks = 2**31 // (16 * 8 * 128) + 2
    small = [random(3, 16, 8, 128, dtype=torch.bfloat16, seed=s).to(DEVICE) for s in (1, 2)]
    large = [torch.empty(num_blocks, 16, 8, 128, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    for cache, from_ in zip(large, small, strict=True):
        cache[-3:] = from_
    q = random(2, 8, 128, dtype=torch.bfloat16, seed=3).to(DEVICE)
    found = []
    for caches in (small, large):
        ids = [len(caches[0]) - i for i in (1, 3, 2)]
        found.append(ops.paged_attention(q, *caches, on_gpu(make_meta([ids], [2], [40], 16)), 0.1, rung=rung))
    assert torch.equal(*found)
    slots = make_meta([[num_blocks - 1]], [2], [2], 16)
    k, angles = random(2, 8, 128, dtype=torch.bfloat16).to(DEVICE), torch.zeros(4, 64, device=DEVICE)
    ops.rope_and_cache(q, k, k, RopeTables(angles + 1, angles), LayerCache(*large), on_gpu(slots))
    assert torch.equal(large[0][-1, :2], k) and torch.equal(large[1][-1, :2], k)


@needs_chip
@pytest.mark.parametrize(
    ("rows", "size", "out"), [(2**15 + 9, 2**16, 9), (9, 2**16, 2**15 + 9), (2**16 + 9, 9, 2**15)]
)
def test_matrices_of_more_than_two_to_the_31_numbers(ops, rows, size, out):
    """The last rows and columns of x, weight and y, by the same numbers in small tensors."""
    x = torch.zeros(rows, size, dtype=torch.bfloat16, device=DEVICE)
    weight = torch.zeros(out, size, dtype=torch.bfloat16, device=DEVICE)
    x[-9:], weight[-9:] = (random(9, size, dtype=torch.bfloat16, seed=s).to(DEVICE) for s in (1, 2))
    small = ops.linear(x[-9:].clone(), weight[-9:].clone())
    assert torch.equal(ops.linear(x, weight)[-9:, -9:], small) and small.count_nonzero() == 81


@needs_chip
def test_tensors_of_the_cpu_are_refused(ops):
    with pytest.raises(ValueError, match="the kernels run on a GPU"):
        ops.act_and_mul(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="another device"):
        ops.rms_norm(torch.ones(1, 2, device=DEVICE), torch.ones(2), 1e-5)


@needs_chip
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_model_that_ships_says_on_a_gpu_what_it_says_on_a_cpu(backend):
    from minillm import LLM

    params = SamplingParams(max_tokens=16, temperature=0.0)
    said = [
        LLM(device=device, backend=which, dtype="float32").generate("Once upon a time", params)[0].text
        for device, which in ((DEVICE, backend), ("cpu", "reference"))
    ]
    assert said[0] == said[1] != ""


# ---- end to end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_end_to_end(tmp_path, dtype):
    config = tiny.config(**SHAPE)
    folder = tiny.make_folder(tmp_path / "model", config, tensors=tiny.weights(config, scale=0.15))
    options = {"device": DEVICE, "backend": BACKEND, "kv_memory": "4MiB", "dtype": dtype}
    whole, chunked = tiny.load(folder, **options), tiny.load(folder, **options, prefill_chunk=7)
    batched = answers(whole, PROMPTS)
    assert same(batched, [answers(whole, [prompt])[0] for prompt in PROMPTS])
    assert same(batched, answers(chunked, PROMPTS))
    for prompt, (tokens, decoded) in zip(PROMPTS, batched, strict=True):
        # log_softmax on the device where decode computed it: on a CPU it has other bits.
        again = whole.logits(prompt + tokens[:-1]).to(DEVICE).log_softmax(-1).cpu()
        assert torch.equal(decoded, again[len(prompt) - 1 :])
    if dtype == "float32":
        reference = tiny.load(folder, backend="reference").logits(PROMPTS[3])
        torch.testing.assert_close(whole.logits(PROMPTS[3]), reference, rtol=2e-4, atol=2e-4)
