"""float32 weights stored as bfloat16: results have the same bits as with float32 storage.

"Wide" is the same engine with `fits_bfloat16` switched off, so that every matrix stays float32.
"""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny
import torch
from native import REFERENCE, check, random
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.bench import machine
from minillm.cli.main import main
from minillm.ops import cpu
from minillm.ops.contract import PackedWeight
from minillm.ops.cpu import CpuOps, fits_bfloat16
from minillm.ops.sampling import SamplingBatch, noise_key
from minillm.worker.step import SequenceRows

PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(length)] for i, length in enumerate([1, 40, 7, 90])]
SAMPLED = SamplingParams(max_tokens=6, temperature=1.2, seed=3, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
MATRICES = 2 * 4 + 2  # of the tiny model: two layers, embedding, head
ONE_NUMBER = "model.layers.0.self_attn.o_proj.weight"


def short(*shape: int, **options: Any) -> Tensor:
    """Random float32 numbers that are exact in bfloat16."""
    return random(*shape, **options).bfloat16().float()


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32)


def both(ops: CpuOps, weight: Tensor) -> tuple[PackedWeight, PackedWeight]:
    """The matrix stored as bfloat16, and as float32."""
    narrow = ops.prepare_weight(weight.clone())
    assert isinstance(narrow, PackedWeight) and narrow.narrow
    out, size = weight.shape
    return narrow, PackedWeight(torch.ops.minillm.pack(weight), out, size, torch.float32)


# ---- op by op -------------------------------------------------------------------------------------


def test_linear(native_ops: CpuOps) -> None:
    """Every shape of tile (1 to 13 rows, and 64), widths that are no multiple of 16."""
    for n, (out, size) in enumerate(product([1, 16, 17, 33, 130, 257], [2, 6, 34, 64, 258])):
        weight = short(out, size, seed=n)
        bias = random(out, seed=n + 1) if n % 2 else None
        narrow, wide = both(native_ops, weight)
        assert 2 * narrow.nbytes == wide.nbytes
        for rows in [*range(1, 14), 64]:
            x = random(rows, size, seed=rows)
            found, what = native_ops.linear(x, narrow, bias), f"{rows} x {size} -> {out}"
            assert torch.equal(found, native_ops.linear(x, wide, bias)), what
            check(found, REFERENCE.linear(x, weight, bias), oracle.linear(x, weight, bias), what)


@pytest.mark.parametrize(("out", "size"), [(1, 2), (17, 34), (32, 64), (257, 6)])
def test_embedding(native_ops: CpuOps, out: int, size: int) -> None:
    weight, ids = short(out, size), torch.tensor([0, out - 1, out // 2, 0])
    for prepared in both(native_ops, weight):
        assert torch.equal(native_ops.embedding(ids, prepared), weight[ids])


def test_no_rows(native_ops: CpuOps) -> None:
    narrow, _ = both(native_ops, short(16, 32))
    assert native_ops.linear(torch.empty(0, 32), narrow).shape == (0, 16)
    assert native_ops.embedding(torch.empty(0, dtype=torch.int64), narrow).shape == (0, 32)


def test_numbers_of_every_kind(native_ops: CpuOps) -> None:
    """Zeros, infinities, NaN with a payload, the smallest and the largest numbers keep their bits."""
    halves = [
        0x0000,
        0x8000,
        0x7F80,
        0xFF80,
        0x7FC0,
        0x7F81,
        0xFFA5,
        0x0001,
        0x8001,
        0x007F,
        0x0080,
        0x7F7F,
        0x3F80,
        0xBF81,
    ]
    numbers = torch.tensor([half << 16 for half in halves]).to(torch.int32).view(torch.float32)
    assert [word >> 16 & 0xFFFF for word in bits(numbers).tolist()] == halves
    weight = torch.stack([numbers.roll(i) for i in range(20)])
    narrow, wide = both(native_ops, weight)
    ids = torch.arange(20)
    assert torch.equal(bits(native_ops.embedding(ids, narrow)), bits(weight))
    assert all(torch.equal(bits(native_ops.unpack_weight(m)), bits(weight)) for m in (narrow, wide))
    for prepared in (narrow, wide):  # the identity selects one number per row; the zeros must not change it
        finite = weight.isfinite()
        only = PackedWeight(prepared.data.nan_to_num(0.0, 0.0, 0.0), *prepared.shape, torch.float32)
        found = native_ops.linear(torch.eye(14), only).T
        assert torch.equal(found[finite], weight[finite])
    x = random(3, 14)
    pairs = native_ops.linear(x, narrow), native_ops.linear(x, wide)
    assert all(y.isnan().all() for y in pairs), "control: infinities and NaN do arrive"


@pytest.mark.parametrize(
    "needs_more",
    [
        1.0 + 2**-23,
        1.0 + 2**-8,
        2**-149,
        0.1,
        torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32).item(),
    ],
)
def test_one_number_keeps_its_matrix_wide(native_ops: CpuOps, needs_more: float) -> None:
    weight = short(40, 34)
    assert fits_bfloat16(weight)
    for at in (0, 777, weight.numel() - 1):
        changed = weight.clone()
        changed.view(-1)[at] = needs_more
        packed = native_ops.prepare_weight(changed.clone())
        assert isinstance(packed, PackedWeight) and not packed.narrow
        assert packed.data.dtype == torch.float32
        assert torch.equal(bits(native_ops.embedding(torch.arange(40), packed)), bits(changed))


def test_an_odd_number_of_inputs_stays_wide(native_ops: CpuOps, cpu_isa: str) -> None:
    """A pair padded with zeros would turn a sum of -0.0, which a fused multiply-add gives, into +0.0."""
    assert not fits_bfloat16(short(4, 5)) and fits_bfloat16(short(5, 4))
    least, zero = torch.tensor([[2.0**-126]]), torch.zeros(1, 1)
    y = native_ops.linear(least, native_ops.prepare_weight(-least))  # -2^-252, rounded
    assert math.copysign(1, y.item()) == (1 if cpu_isa == "generic" else -1)
    padded = native_ops.linear(torch.cat([least, zero], -1), torch.cat([-least, zero], -1))
    assert math.copysign(1, padded.item()) == 1, "control: with padding the result differs"


def test_other_dtypes_are_left_alone(native_ops: CpuOps) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        packed = native_ops.prepare_weight(random(17, 6, dtype=dtype))
        assert isinstance(packed, PackedWeight)
        assert packed.data.dtype == packed.dtype == dtype and not packed.narrow


def test_the_ops_as_torch_sees_them() -> None:
    ops, packed = torch.ops.minillm, torch.ops.minillm.pack(random(17, 16).bfloat16())
    torch.library.opcheck(ops.linear.default, (random(4, 16), packed, random(17), 17))
    torch.library.opcheck(ops.embedding.default, (torch.tensor([1, 2]), packed, 17, 16, torch.float32))


# ---- in an engine ---------------------------------------------------------------------------------


def rounded(config: dict[str, Any]) -> dict[str, Tensor]:
    return {name: t.bfloat16() for name, t in tiny.weights(config).items()}


@pytest.fixture
def stored_short(tmp_path: Path) -> Path:
    """The tiny model in bfloat16, like most checkpoints."""
    return tiny.make_folder(tmp_path / "short", tensors=rounded(tiny.config()))


def load_wide(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> LLM:
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "fits_bfloat16", lambda weight: False)
        return tiny.load(folder, backend="native", **options)


def narrow_ones(llm: LLM) -> list[bool]:
    return [isinstance(m, PackedWeight) and m.narrow for m in llm.engine.model.decoder.matrices]


def answers(llm: LLM) -> list[Any]:
    return [(out.token_ids, out.logprobs) for out in llm.generate(PROMPTS, SAMPLED)]


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}], ids=str)
def test_an_engine_gives_the_same_bits(
    cpu_isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = tiny.config(**changes)
    tensors = rounded(config)
    if "attention_bias" in changes:
        for i, (name, size) in product(range(2), {"q": 32, "k": 16, "v": 16, "o": 32}.items()):
            tensors[f"model.layers.{i}.self_attn.{name}_proj.bias"] = random(size, seed=i)
    folder = tiny.make_folder(tmp_path / "model", config, tensors=tensors)
    kept, wide = tiny.load(folder, backend="native"), load_wide(folder, monkeypatch)
    assert all(narrow_ones(kept)) and not any(narrow_ones(wide))
    assert answers(kept) == answers(wide)
    assert torch.equal(kept.logits(PROMPTS[3]), wide.logits(PROMPTS[3]))
    assert kept.engine.envelope == wide.engine.envelope, "no bit depends on the storage, so no digest does"
    bytes_kept, bytes_wide = (x.engine.model.decoder.step_bytes() for x in (kept, wide))
    vectors = sum(p.nbytes for p in kept.engine.model.decoder.parameters())
    assert bytes_wide - vectors == 2 * (bytes_kept - vectors)


def test_steps_ahead_give_the_same_tokens_keys_and_values(
    cpu_isa: str, stored_short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = SamplingBatch([SamplingParams()] * 2, [0, 0], [(), ()], 300)
    keys = [[noise_key(i, 0, level) for level in range(5)] for i in range(2)]
    results = []
    for llm in (tiny.load(stored_short, backend="native"), load_wide(stored_short, monkeypatch)):
        runner = llm.engine.worker.runner
        for tensor in (*runner.cache.k, *runner.cache.v):
            tensor.zero_()
        rows = [SequenceRows(PROMPTS[1], 0, [0, 1, 2]), SequenceRows(PROMPTS[2], 0, [3, 4])]
        results.append((runner.decode_ahead(rows, [5, 5], keys, batch), [*runner.cache.k, *runner.cache.v]))
    (tokens, caches), (expected, others) = results
    assert tokens == expected
    assert all(torch.equal(a, b) and a.any() for a, b in zip(caches, others, strict=True))


def test_one_number_in_one_matrix(cpu_isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that matrix stays wide. Rounding the number instead would show."""
    tensors = {name: t.float() for name, t in rounded(tiny.config()).items()}
    bits(tensors[ONE_NUMBER])[3, 5] |= 0x8000
    folder = tiny.make_folder(tmp_path / "model", tensors=tensors)
    kept, wide = tiny.load(folder, backend="native"), load_wide(folder, monkeypatch)
    assert narrow_ones(kept) == [i != 1 for i in range(MATRICES)]
    assert answers(kept) == answers(wide)
    monkeypatch.setattr(cpu, "fits_bfloat16", lambda weight: True)
    cut = tiny.load(folder, backend="native")
    assert all(narrow_ones(cut))
    assert answers(cut) != answers(wide), "control: a bit in one number is seen"


def test_the_other_backend_keeps_what_it_gets(stored_short: Path) -> None:
    llm = tiny.load(stored_short, backend="reference")
    assert not any(narrow_ones(llm))
    assert {m.dtype for m in llm.engine.model.decoder.matrices} == {torch.float32}


# ---- counted --------------------------------------------------------------------------------------


def test_the_bench_counts_what_is_read(
    stored_short: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_BANDWIDTH_BYTES", 8 << 20)
    args = [
        "bench",
        "--prompt-len",
        "8",
        "--tokens",
        "2",
        "--runs",
        "1",
        "--batch",
        "1",
        "--dtype",
        "float32",
    ]
    reports = []
    for model in (stored_short, folder):
        assert main([*args, "--json", "--model", str(model)]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    narrow, wide = (report["weights"] for report in reports)
    inner, vectors = 2 * (32 * 64 + 32 * 32 + 32 * 128 + 64 * 32) + 320 * 32, 5 * 32 * 4
    assert narrow == {"bytes_per_step": 2 * inner + vectors, "matrices": MATRICES, "kept_narrow": MATRICES}
    assert wide == {"bytes_per_step": 4 * inner + vectors, "matrices": MATRICES, "kept_narrow": 0}
    for report, weights in zip(reports, (narrow, wide), strict=True):
        row = report["rows"][1]
        keys = 2 * 2 * 16 * 4 * (32 + 1)  # K and V of two layers: the prompt and half of the decoded tokens
        assert math.isclose(
            row["bytes_per_s"], (weights["bytes_per_step"] + keys) * row["tokens_per_s"]["median"]
        )
    assert main([*args, "--model", str(stored_short)]) == 0
    assert f"{MATRICES} of {MATRICES} matrices fit in bfloat16" in capsys.readouterr().out
