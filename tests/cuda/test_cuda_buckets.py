"""Steps that are filled up to a fixed size, as a CUDA graph needs them: the bits of the step as it is.

The kernels leave the cache alone for a row with a negative slot, and give 0 for a row that sees no key. The
simulator runs a filled-up step without a graph; test_cuda_runtime.py captures one.
"""

from __future__ import annotations

from pathlib import Path

import families
import pytest
import tiny
import torch
from cases import make_meta
from torch import Tensor

from minillm import SamplingParams
from minillm.config import EngineConfig
from minillm.model.decoder import Decoder
from minillm.model.loader import load_model
from minillm.ops.contract import AttentionMetadata, LayerCache
from minillm.ops.cuda_model import CudaModel
from minillm.ops.sampling import SamplingBatch, noise_key
from minillm.ops.simt import SimtOps, flavour, profile
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

counted_or_checked = pytest.mark.skipif(
    sanitizing(), reason="the asan flavour neither counts nor looks for races"
)

TABLES = [[3, 7, 1], [0, 2, 9], [4, 5, 6]]
CONTEXT = [17, 0, 33]
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.9, top_k=7),
    SamplingParams(temperature=1.2, top_p=0.8, min_p=0.01),
]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    base = tmp_path_factory.mktemp("families")
    config = EngineConfig(dtype="bfloat16", device="cpu")
    made = {
        family: families.make_folder(base, family)
        for family in ("llama", "gemma2", "gpt2", "qwen3", "qwen3_moe", "gpt_oss")
    }
    made["heads of 64"] = families.make_folder(base / "64", "llama", **families.WIDE_HEADS)
    return {name: load_model(folder, config, SimtOps()).decoder for name, folder in made.items()}


def bind(decoder: Decoder, sizes: tuple[int, ...] = ()) -> tuple[CudaModel, list[Tensor]]:
    """A model with random numbers in its caches."""
    c, generator = decoder.config, torch.Generator().manual_seed(3)
    shape = 12, 16, c.num_key_value_heads, c.head_dim
    k, v = ([torch.randn(shape, generator=generator).bfloat16() for _ in c.layers] for _ in range(2))
    model = SimtOps().bind(decoder.weights(), k, v)
    assert isinstance(model, CudaModel)
    model.fill_up_to(sizes)
    return model, [*k, *v]


def step(rows_each: int) -> tuple[Tensor, AttentionMetadata, SamplingBatch]:
    """The next `rows_each` tokens of three sequences."""
    after = [length + rows_each for length in CONTEXT]
    keys = [noise_key(row, 0, rows_each) for row in range(3 * rows_each)]
    params = [p for p in PARAMS for _ in range(rows_each)]
    batch = SamplingBatch(params, keys, [()] * len(keys), 300)
    return torch.arange(3 * rows_each) * 31 % 300, make_meta(TABLES, [rows_each] * 3, after, 16), batch


@counted_or_checked
@pytest.mark.parametrize(
    ("family", "rows_each"),
    [
        ("llama", 1),
        ("gemma2", 3),
        ("gpt2", 1),
        ("qwen3", 2),
        ("qwen3_moe", 1),
        ("gpt_oss", 2),
        ("heads of 64", 1),
        ("heads of 64", 3),
    ],
)
def test_a_filled_up_step_has_the_bits_of_the_step(
    decoders: dict[str, Decoder], family: str, rows_each: int
) -> None:
    """A decode step, and a verification pass of `rows_each` rows a sequence; the cache is equal too."""
    (plain, caches), (filled, written) = bind(decoders[family]), bind(decoders[family], (1, 2, 5))
    ids, meta, batch = step(rows_each)
    expected = plain.step(ids, meta, batch, all_rows=True)
    with profile() as counted:
        found = filled.step(ids, meta, batch, all_rows=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[1].all()
    assert all(torch.equal(a, b) for a, b in zip(written, caches, strict=True))
    layers = decoders[family].config.num_hidden_layers
    assert next(c.blocks for name, c in counted.kernels.items() if "rope" in name) == 5 * rows_each * layers
    assert (counted.copies_to_device, counted.copies_to_host, counted.waits) == (1, 1, 1)


@counted_or_checked
def test_filled_up_rows_race_with_nothing(decoders: dict[str, Decoder]) -> None:
    model, _ = bind(decoders["llama"], (4,))
    with flavour("check"):
        assert model.step(*step(1))[1].all()


def test_a_row_that_is_not_finite_harms_no_other(decoders: dict[str, Decoder]) -> None:
    (plain, caches), (filled, written) = bind(decoders["llama"]), bind(decoders["llama"], (4,))
    for values in (caches, written):
        values[-1][TABLES[2][0], 0] = float("nan")
    expected, found = plain.step(*step(1)), filled.step(*step(1))
    assert found[1].tolist() == expected[1].tolist() == [True, True, False]
    assert torch.equal(found[0][:2], expected[0][:2])
    assert torch.equal(found[2][:2], expected[2][:2])


@counted_or_checked
def test_what_has_no_shape_runs_as_it_is(decoders: dict[str, Decoder]) -> None:
    """More sequences than the largest size, unequal numbers of rows, repetition penalties."""

    def blocks(model: CudaModel, ids: Tensor, meta: AttentionMetadata, batch: SamplingBatch) -> int:
        with profile() as counted:
            model.step(ids, meta, batch, all_rows=True)
        return next(c.blocks for name, c in counted.kernels.items() if "gather" in name)

    small, _ = bind(decoders["llama"], (1, 2))
    assert blocks(small, *step(1)) == 3
    large, _ = bind(decoders["llama"], (8,))
    assert blocks(large, *step(1)) == 8
    _, _, batch = step(2)
    uneven = make_meta(TABLES, [1, 2, 3], [18, 2, 36], 16)
    assert blocks(large, torch.arange(6), uneven, batch) == 6
    ids, meta, batch = step(1)
    params = [SamplingParams(temperature=1.0, repetition_penalty=1.5)] * 3
    seen = SamplingBatch(params, batch.keys, [[1, 2]] * 3, 300)
    assert blocks(large, ids, meta, seen) == 3


def test_sizes_must_rise(decoders: dict[str, Decoder]) -> None:
    model, _ = bind(decoders["llama"])
    for sizes in ((0,), (2, 2), (4, 1)):
        with pytest.raises(RuntimeError, match="sizes must be positive and rise"):
            model.fill_up_to(sizes)


@pytest.mark.parametrize("rung", ["v1", "v2", "d1", "v3", "d2", "d3"])
def test_a_row_without_keys_is_zero(rung: str) -> None:
    """kv_len 0 stands for a row that fills up a batch. The other rows keep their bits."""
    ops, generator = SimtOps(), torch.Generator().manual_seed(1)
    q = torch.randn(4, 4, 64, generator=generator).bfloat16()
    k, v = (torch.randn(8, 16, 2, 64, generator=generator).bfloat16() for _ in range(2))
    meta = make_meta([[2, 3], [5, 0], [0, 0], [0, 0]], [1, 1, 1, 1], [20, 3, 0, 0], 16)
    out = ops.paged_attention(q, k, v, meta, 0.125, None, rung)
    assert (out[2:] == 0).all()
    alone = make_meta([[2, 3], [5, 0]], [1, 1], [20, 3], 16)
    assert torch.equal(out[:2], ops.paged_attention(q[:2], k, v, alone, 0.125, None, rung))


def test_a_negative_slot_is_not_written() -> None:
    ops, generator = SimtOps(), torch.Generator().manual_seed(1)
    q, new = torch.randn(3, 4, 32, generator=generator), torch.randn(3, 2, 32, generator=generator)
    k, v, rope = torch.zeros(2, 16, 2, 32), torch.zeros(2, 16, 2, 32), torch.ones(8, 16)
    meta = AttentionMetadata(
        torch.tensor([4, 0, 5]),
        torch.tensor([4, -1, 21]),
        torch.tensor([[0, 1]], dtype=torch.int32),
        torch.tensor([0, 3], dtype=torch.int32),
        torch.tensor([6], dtype=torch.int32),
    )
    ops.rope_and_cache(q, new, new, (rope, rope), LayerCache(k, v), meta)
    assert k.view(32, -1).any(dim=1).nonzero().flatten().tolist() == [4, 21]
    assert v.view(32, -1).any(dim=1).nonzero().flatten().tolist() == [4, 21]


def test_an_engine_whose_steps_are_filled_up_answers_the_same(tmp_path: Path) -> None:
    folder = families.make_folder(tmp_path, "llama")
    params = SamplingParams(5, temperature=0.8, seed=4, logprobs=3)
    prompts = [[1, 2, 3], [4] * 9, [7, 8]]  # a step has one to three sequences
    answers = []
    for sizes in ((), (1, 4)):
        llm = tiny.load(folder, backend="simt", dtype="bfloat16")
        model = llm.engine.worker.runner._fused
        assert isinstance(model, CudaModel)
        model.fill_up_to(sizes)
        answers.append([(o.token_ids, o.logprobs) for o in llm.generate(prompts, params)])
    assert answers[0] == answers[1]
