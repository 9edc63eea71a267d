"""A whole pass in one call on a GPU: the bits of single ops, with and without a captured graph.

The simulator shows the same in test_cuda_pass.py and test_cuda_buckets.py, except that it has no graphs.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from company import PROMPTS, SHAPE, answers, same

from minillm import LLM, SamplingParams
from minillm.ops.cuda_model import CudaModel
from minillm.ops.sampling import SamplingBatch
from minillm.worker.passes import OpByOp
from minillm.worker.step import SequenceRows

pytestmark = pytest.mark.gpu
ON_GPU = torch.cuda.is_available()
DEVICE, BACKEND = ("cuda", "native") if ON_GPU else ("cpu", "simt")
each_kind = pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("float16", "fp8")]
)  # of a KV cache


@pytest.fixture
def load(tmp_path: Any) -> Any:
    config = tiny.config(**SHAPE)
    folder = tiny.make_folder(tmp_path / "model", config, tensors=tiny.weights(config, scale=0.15))

    def made(dtype: str, sizes: tuple[int, ...], **options: Any) -> LLM:
        llm = tiny.load(folder, device=DEVICE, backend=BACKEND, kv_memory="4MiB", dtype=dtype, **options)
        model = llm.engine.worker.runner._fused
        assert isinstance(model, CudaModel)
        model.fill_up_to(sizes)
        return llm

    return made


@each_kind
def test_a_pass_has_the_bits_of_single_ops(load: Any, dtype: str, kind: str | None) -> None:
    runner = load(dtype, (), kv_dtype=kind).engine.worker.runner
    single = copy.copy(runner)
    single._pass, single._fused = OpByOp(runner.decoder, runner.cache), None
    single._index_device = runner.device
    chunks = [SequenceRows(prompt, 0, list(range(8 * i, 8 * i + 8))) for i, prompt in enumerate(PROMPTS[:3])]
    rows = [SequenceRows([5 + i], chunk.end, chunk.block_table) for i, chunk in enumerate(chunks)]
    for batch in (chunks, rows):
        expected = single.last_logits(batch)
        assert torch.equal(runner.last_logits(batch), expected)
        assert expected.isfinite().all()


@each_kind
def test_a_captured_step_has_the_bits_of_the_step(load: Any, dtype: str, kind: str | None) -> None:
    """The first step of a shape runs as it is, the second is captured, and the third is launched."""
    plain, captured = load(dtype, (), kv_dtype=kind), load(dtype, (1, 2, 4), kv_dtype=kind)
    params = SamplingParams(12, temperature=0.8, seed=1, logprobs=2)

    def generated(llm: LLM) -> list[tuple[Any, Any]]:
        return [(o.token_ids, o.logprobs) for o in llm.generate(PROMPTS, params)]

    assert generated(captured) == generated(plain)
    assert same(answers(captured, PROMPTS), answers(plain, PROMPTS))


def test_verification_of_a_fixed_length_is_captured_too(load: Any) -> None:
    plain, captured = load("bfloat16", ()).engine.worker.runner, load("bfloat16", (2,)).engine.worker.runner
    chunks = [SequenceRows(prompt, 0, list(range(8 * i, 8 * i + 8))) for i, prompt in enumerate(PROMPTS[:2])]
    params = [SamplingParams(temperature=1.0)] * 8
    for runner in (plain, captured):
        runner.last_logits(chunks)
    for turn in range(3):
        rows = [SequenceRows([5, 6, 7, 8 + turn], chunk.end, chunk.block_table) for chunk in chunks]
        batch = SamplingBatch(params, range(8 * turn, 8 * turn + 8), [()] * 8, SHAPE.get("vocab_size", 300))
        found = captured.step(rows, batch, all_rows=True)
        expected = plain.step(rows, batch, all_rows=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
