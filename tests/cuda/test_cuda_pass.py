"""A whole pass on the CUDA kernels in the simulator: the bits of single ops, and what a step asks of the GPU.

Every family runs with long and short sequences in one batch: in bfloat16, and a few that have
all kernels between them in the other dtypes. The control for the bits is
`test_control_each_number_reaches_the_pass`; the control for the counts is the same step op by op.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from cases import make_meta
from family_steps import TABLES, Caches, load_decoder, two_steps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minillm import SamplingParams
from minillm.model.decoder import Decoder
from minillm.model.families import FAMILIES
from minillm.ops.contract import AttentionMetadata, Ops
from minillm.ops.fused import FusedModel
from minillm.ops.reference import ReferenceOps
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

IN_EVERY_DTYPE = ("llama", "gemma2", "gpt2", "olmo2", "qwen3_moe", "gpt_oss")
CASES = [(family, "bfloat16") for family in FAMILIES]
CASES += [(family, dtype) for family in IN_EVERY_DTYPE for dtype in ("float32", "float16")]
WIDE = {f"{family} with heads of 64": family for family in ("llama", "mistral", "qwen3_moe")}
CASES += [(name, dtype) for name, dtype in zip(WIDE, ("bfloat16", "float16", "bfloat16"), strict=True)]
Q_LENS, KV_LENS = [1, 5, 11, 3, 1], [1, 9, 11, 3, 20]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("families")
    made = {family: families.make_folder(base, family) for family in FAMILIES}
    wide = families.WIDE_HEADS
    return made | {name: families.make_folder(base / "64", family, **wide) for name, family in WIDE.items()}


def load(folder: Path, dtype: str, ops: Ops | None = None) -> Decoder:
    return load_decoder(folder, dtype, ops or SimtOps())


def caches(decoder: Decoder) -> Caches:
    """Caches of every layer, with keys and values that are finite where no test has written."""
    c, dtype = decoder.config, decoder.norm.weight.dtype
    shape, generator = (45, 16, c.num_key_value_heads, c.head_dim), torch.Generator().manual_seed(5)
    k, v = ([torch.randn(shape, generator=generator).to(dtype) for _ in c.layers] for _ in range(2))
    return k, v


def bind(decoder: Decoder, kv: Caches) -> FusedModel:
    weights = decoder.weights()
    assert SimtOps().can_bind(weights)
    return SimtOps().bind(weights, *kv)


def steps() -> list[tuple[Tensor, AttentionMetadata]]:
    """A step with a chunk of each of five sequences, then one with a single new token for each."""
    return two_steps(Q_LENS, KV_LENS)


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_a_pass_has_the_bits_of_single_ops(folders: dict[str, Path], family: str, dtype: str) -> None:
    decoder = load(folders[family], dtype)
    by_op, in_one_call, last = (caches(decoder) for _ in range(3))
    fused, only_last = bind(decoder, in_one_call), bind(decoder, last)
    for ids, meta in steps():
        expected = decoder.forward(ids, *by_op, meta)
        assert expected.isfinite().all()
        assert torch.equal(fused.hidden(ids, meta), expected)
        logits = decoder.logits(expected[meta.query_start[1:] - 1])
        assert torch.equal(only_last.last_logits(ids, meta), logits)
    for written in (in_one_call, last):
        pairs = zip((*by_op[0], *by_op[1]), (*written[0], *written[1]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=9, top_p=0.9, min_p=0.01),
    SamplingParams(temperature=1.3, repetition_penalty=1.7),
    SamplingParams(temperature=1.0, top_p=0.5),
]


def sampling(step: int) -> SamplingBatch:
    keys, seen = [noise_key(i, 0, step) for i in range(5)], [[5 * i, 5 * i + 1, 5 * i] for i in range(5)]
    return SamplingBatch(PARAMS, keys, seen, 300)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_is_the_pass_the_look_and_the_draws(folders: dict[str, Path], dtype: str) -> None:
    decoder, broken = load(folders["llama"], dtype), 4
    ops, looped, stepped = SimtOps(), caches(decoder), caches(decoder)
    for _, values in (looped, stepped):
        values[1][TABLES[broken][0], 0] = math.nan
    fused = bind(decoder, stepped)
    for number, (ids, meta) in enumerate(steps()):
        hidden = decoder.forward(ids, *looped, meta)
        expected = decoder.logits(hidden[meta.query_start[1:] - 1])
        tokens, finite, logits = fused.step(ids, meta, sampling(number))
        assert torch.equal(logits.nan_to_num(9.0), expected.nan_to_num(9.0))
        assert (~finite).nonzero().tolist() == [[broken]]
        drawn = ops.sample(expected.nan_to_num(0.0), sampling(number))
        assert torch.equal(tokens[finite], drawn[finite])


def test_steps_ahead_are_passes_and_draws(folders: dict[str, Path]) -> None:
    decoder = load(folders["gemma2"], "bfloat16")
    looped, ahead = (bind(decoder, caches(decoder)) for _ in range(2))
    depths, (ids, meta) = [3, 3, 2, 1, 0], steps()[0]
    keys = [[noise_key(i, 0, level) for level in range(3)] for i in range(5)]
    params = [SamplingParams(temperature=1.0)] * 5
    drawn = ahead.decode_ahead(ids, meta, depths, keys, SamplingBatch(params, [0] * 5, [()] * 5, 300))
    assert [len(tokens) for tokens in drawn] == depths
    for level in range(3):
        batch = SamplingBatch(params, [own[level] for own in keys], [()] * 5, 300)
        ids, _, _ = looped.step(ids, meta, batch)
        assert [tokens[level] for tokens in drawn if len(tokens) > level] == [
            token for token, depth in zip(ids.tolist(), depths, strict=True) if depth > level
        ]
        meta = make_meta(TABLES, [1] * 5, [length + level + 1 for length in KV_LENS], 16)


class Dispatched(TorchDispatchMode):
    """Collects the names of the ops that Python dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@counted_or_checked
def test_what_a_step_asks_of_the_gpu(folders: dict[str, Path]) -> None:
    """One op, one copy in, one copy out, one wait; nine launches a layer and five around the layers."""
    decoder = load(folders["llama"], "bfloat16")
    fused, (ids, meta), batch = bind(decoder, caches(decoder)), steps()[1], sampling(1)
    batch.tensors()  # makes the columns that later steps reuse
    with profile() as one, Dispatched() as called:
        fused.step(ids, meta, batch)
    assert [name for name in called.names if name.startswith("minillm")] == ["minillm_simt.step.default"]
    assert (one.copies_to_device, one.copies_to_host, one.waits) == (1, 1, 1)
    for name in ("gather", "finite"):
        assert sum(c.launches for kernel, c in one.kernels.items() if name in kernel) == 1
    layers = decoder.config.num_hidden_layers
    drawing = [one[kernel].launches for kernel in ("highest", "sort", "cut", "draw", "finish")]
    assert drawing == [1] * 5
    assert one.launches == 9 * layers + 4 + 5  # embedding, norm before the first layer, head, finite

    with profile() as many, Dispatched() as called:  # the control: the same step op by op
        logits = decoder.logits(decoder.forward(ids, *caches(decoder), meta))
        SimtOps().sample(logits, batch)
    ours = [name for name in called.names if name.startswith("minillm")]
    assert len(ours) > 8 * layers
    assert many.launches < one.launches + 1


@counted_or_checked
def test_a_prompt_takes_one_copy(folders: dict[str, Path]) -> None:
    decoder = load(folders["llama"], "bfloat16")
    fused, (ids, meta) = bind(decoder, caches(decoder)), steps()[0]
    with profile() as counted:
        fused.last_logits(ids, meta)
    assert (counted.copies_to_device, counted.copies_to_host, counted.waits) == (1, 0, 0)


@counted_or_checked
def test_steps_ahead_take_one_copy_in_and_one_out(folders: dict[str, Path]) -> None:
    decoder = load(folders["llama"], "bfloat16")
    fused, (ids, meta) = bind(decoder, caches(decoder)), steps()[1]
    keys = [[1, 2, 3]] * 5
    batch = SamplingBatch([SamplingParams(temperature=1.0)] * 5, [0] * 5, [()] * 5, 300)
    with profile() as counted:
        fused.decode_ahead(ids, meta, [3] * 5, keys, batch)
    assert (counted.copies_to_device, counted.copies_to_host, counted.waits) == (1, 1, 1)


@counted_or_checked
def test_a_pass_is_free_of_races(folders: dict[str, Path]) -> None:
    decoder = load(folders["gemma2"], "float16")
    fused = bind(decoder, caches(decoder))
    with flavour("check"):
        for ids, meta in steps():
            tokens, finite, _ = fused.step(ids, meta, sampling(0))
            assert finite.all()
            assert (tokens >= 0).all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an id": ({"ids": torch.tensor([1, 2, 3, 4, tiny.VOCAB_SIZE])}, f"id {tiny.VOCAB_SIZE}"),
    "a slot": ({"slot_mapping": torch.tensor([0, 1, 2, 3, 45 * 16])}, "slot 720"),
    "a position": ({"positions": torch.tensor([0, 1, 2, 3, 512])}, "position 512"),
    "a block": ({"block_table": torch.full((5, 9), 45, dtype=torch.int32)}, "block 45"),
    "a length": ({"kv_len": torch.full((5,), 200, dtype=torch.int32)}, "needs 13 blocks"),
}


@counted_or_checked
@pytest.mark.parametrize("name", REFUSED)
def test_indexes_outside_the_cache_are_refused(folders: dict[str, Path], name: str) -> None:
    """They are checked on the host, before anything reaches the GPU."""
    changes, says = REFUSED[name]
    decoder = load(folders["llama"], "bfloat16")
    fused, (ids, meta) = bind(decoder, caches(decoder)), steps()[1]
    ids = changes.get("ids", ids)
    meta = replace(meta, **{key: value for key, value in changes.items() if key != "ids"})
    with profile() as counted, pytest.raises(RuntimeError, match=says):
        fused.step(ids, meta, sampling(0))
    assert counted.launches == 0


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("granite", {"residual_scale": 0.3}),
        ("granite", {"logits_divisor": 7.0}),
        ("gemma2", {"logits_softcap": 0.5}),
        ("gemma2", {"embedding_scale": 3.3}),
        ("gemma2", {"norm_offset": 0.5}),
        ("llama", {"activation": "relu"}),
    ],
)
def test_control_each_number_reaches_the_pass(
    folders: dict[str, Path], family: str, change: dict[str, Any]
) -> None:
    """A changed number changes the logits, and in the same way op by op."""
    (ids, meta), _ = steps()
    plain = load(folders[family], "bfloat16")
    changed = Decoder(replace(plain.config, **change), SimtOps()).to(torch.bfloat16)
    changed.load_state_dict(load(folders[family], "bfloat16", ReferenceOps()).state_dict())
    changed.ropes = plain.ropes
    found = bind(changed, caches(changed)).last_logits(ids, meta)
    by_op = changed.logits(changed.forward(ids, *caches(changed), meta)[meta.query_start[1:] - 1])
    assert torch.equal(found, by_op)
    assert not torch.equal(found, bind(plain, caches(plain)).last_logits(ids, meta))


BLOCKING = (
    "_local_scalar_dense",
    "_to_copy",
    "copy_",
    "item",
    "nonzero",
)  # of PyTorch, for a tensor on a GPU


def engine_steps(
    llm: Any, prompts: list[list[int]], params: SamplingParams
) -> list[tuple[str, Any, list[str]]]:
    """Each step of a generation: its kind, what it asked of the simulator, the ops that Python dispatched."""
    worker, seen = llm.engine.worker, list[tuple[str, Any, list[str]]]()
    execute = worker.execute

    def counted(step: Any) -> Any:
        kinds = [kind for kind in ("prefill", "decode", "verify") if getattr(step, kind)]
        with profile() as one, Dispatched() as called:
            output = execute(step)
        seen.append((" + ".join(kinds), one, called.names))
        return output

    worker.execute = counted
    llm.generate(prompts, params)
    return seen


@counted_or_checked
@pytest.mark.parametrize(
    "options", [{}, {"draft_model": "ngram", "num_draft_tokens": 3}], ids=["plain", "drafts"]
)
def test_every_step_of_an_engine_is_one_call_a_pass(
    folders: dict[str, Path], options: dict[str, Any]
) -> None:
    """A prompt with its first draws, a decode step, a verification: each is one op, one copy in and out."""
    llm = tiny.load(folders["llama"], backend="simt", dtype="bfloat16", **options)
    prompts = [[7, 8, 9] * 4, [5, 6] * 3]
    seen = engine_steps(llm, prompts, SamplingParams(6, temperature=0.0))
    kinds = [kind for kind, _, _ in seen]
    assert "prefill" in kinds
    assert ("verify" if options else "decode") in kinds
    for kind, counted, dispatched in seen:
        passes = kind.count("+") + 1
        ours = [name for name in dispatched if name.startswith("minillm") and "verify_coupled" not in name]
        assert ours == ["minillm_simt.step.default"] * passes, kind
        assert (counted.copies_to_device, counted.copies_to_host, counted.waits) == (passes,) * 3
        assert not [name for name in dispatched if any(word in name for word in BLOCKING)], kind


@counted_or_checked
def test_a_chunk_that_ends_no_prompt_draws_nothing(folders: dict[str, Path]) -> None:
    llm = tiny.load(folders["llama"], backend="simt", dtype="bfloat16", prefill_chunk=8)
    seen = engine_steps(llm, [[3, 4] * 10], SamplingParams(2, temperature=0.0))
    first = seen[0][1]
    assert [kind for kind, _, _ in seen] == ["prefill", "prefill", "prefill", "decode"]
    assert (first.copies_to_device, first.copies_to_host, first.waits) == (1, 0, 0)
    assert "draw" not in first.kernels
    assert "draw" in seen[2][1].kernels, "the control: the last chunk draws"


@counted_or_checked
def test_control_a_replaced_part_runs_op_by_op(folders: dict[str, Path]) -> None:
    def sampler(logits: Tensor, batch: SamplingBatch) -> Tensor:
        return SimtOps().sample(logits, batch)

    llm = tiny.load(folders["llama"], backend="simt", dtype="bfloat16", parts={"sampler": sampler})
    seen = engine_steps(llm, [[3, 4, 5]], SamplingParams(2, temperature=0.0))
    ours = [name for name in seen[-1][2] if name.startswith("minillm")]
    assert len(ours) > 1
    assert [name for name in seen[-1][2] if any(word in name for word in BLOCKING)]
