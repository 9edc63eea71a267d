"""Whole passes and several decode steps in one call give the same results as single ops.

`last_logits`, `step` and `decode_ahead` are compared bit for bit with the ops they replace: `forward`,
`logits`, `finite_rows` and `sample`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm import SamplingParams
from minillm.ops.cpu import CpuOps
from minillm.ops.reference import ReferenceOps
from minillm.ops.sampling import SamplingBatch, noise_key
from minillm.worker.runner import ModelRunner
from minillm.worker.step import SequenceRows

SHAPES: dict[str, dict[str, Any]] = {
    "llama": tiny.config(num_hidden_layers=3),
    "tied": tiny.config(tie_word_embeddings=True),
    "window": tiny.mistral_config(7),
    "qk norm": tiny.config(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=16, num_attention_heads=4
    ),
}
KINDS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
]


def weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = tiny.weights(config, scale=0.2)
    if config["model_type"] == "qwen3":
        for i in range(config["num_hidden_layers"]):
            for name in ("q_norm", "k_norm"):
                tensors[f"model.layers.{i}.self_attn.{name}.weight"] = 1 + torch.randn(16) / 4
    return tensors


def runner_of(folder: Path, dtype: str) -> ModelRunner:
    runner = tiny.load(folder, backend="native", dtype=dtype).engine.worker.runner
    for tensor in (*runner.cache.k, *runner.cache.v):
        tensor.fill_(float("nan"))
    return runner


def sequences(count: int) -> tuple[list[SequenceRows], list[int]]:
    """Sequences of different lengths with their own pages, and the tokens to draw for each, falling."""
    rows, depths, block = [], [], 0
    for i in range(count):
        length = (1, 5, 17, 2, 33)[i % 5]
        rows.append(
            SequenceRows([(7 * i + j) % 300 for j in range(length)], 0, [block + 1, block, block + 2])
        )
        depths.append(max(0, 6 - i // 2))
        block += 3
    return rows, depths


def last_rows(runner: ModelRunner, batch: list[SequenceRows]) -> torch.Tensor:
    """Logits of each sequence's last row, from a pass that computes all rows through all layers."""
    hidden, ends = runner.forward(batch), torch.tensor([len(rows.token_ids) for rows in batch]).cumsum(0)
    return runner.decoder.logits(hidden[ends - 1])


def one_by_one(
    runner: ModelRunner, rows: list[SequenceRows], depths: list[int], keys: list[list[int]], params: Any
) -> list[list[int]]:
    """The same tokens from a loop of single ops."""
    drawn = [list[int]() for _ in rows]
    batch = rows
    for level in range(max(depths)):
        logits = last_rows(runner, batch)
        alive = [i for i, depth in enumerate(depths) if depth > level]
        own = [keys[i][level] for i in alive]
        sampling = SamplingBatch([params[i] for i in alive], own, [()] * len(alive), 300)
        tokens = runner.decoder.ops.sample(logits[: len(alive)], sampling).tolist()
        for i, token in zip(alive, tokens, strict=True):
            drawn[i].append(token)
        going = [i for i, depth in enumerate(depths) if depth > level + 1]
        batch = [SequenceRows(drawn[i][-1:], rows[i].end + level, rows[i].block_table) for i in going]
    return drawn


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_tokens_are_those_of_one_step_at_a_time(
    native_ops: CpuOps, tmp_path: Path, shape: str, dtype: str, stored: str, count: int
) -> None:
    """With a bfloat16 checkpoint and dtype float32, matrices are stored in 16 bits."""
    tensors = {name: t.to(getattr(torch, stored)) for name, t in weights(SHAPES[shape]).items()}
    folder = tiny.make_folder(tmp_path / "model", SHAPES[shape], tensors=tensors)
    rows, depths = sequences(count)
    params = [SamplingParams(**KINDS[i % 3]) for i in range(count)]
    keys = [[noise_key(i, 0, level) for level in range(depth)] for i, depth in enumerate(depths)]
    looped, ahead = runner_of(folder, dtype), runner_of(folder, dtype)
    expected = one_by_one(looped, rows, depths, keys, params)
    sampling = SamplingBatch(params, [0] * count, [()] * count, 300)
    assert ahead.decode_ahead(rows, depths, keys, sampling) == expected
    assert [len(tokens) for tokens in expected] == depths
    assert same_cache(looped, ahead)


def same_cache(a: ModelRunner, b: ModelRunner) -> bool:
    """Whether all keys and values have the same bits; slots that were not written hold NaN."""
    pairs = zip([*a.cache.k, *a.cache.v], [*b.cache.k, *b.cache.v], strict=True)
    return all(torch.equal(x.view(-1).nan_to_num(9.0), y.view(-1).nan_to_num(9.0)) for x, y in pairs)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pass_that_drops_rows_gives_the_same_logits(
    native_ops: CpuOps, tmp_path: Path, shape: str, dtype: str, count: int
) -> None:
    folder = tiny.make_folder(tmp_path / "model", SHAPES[shape], tensors=weights(SHAPES[shape]))
    rows, _ = sequences(count)
    whole, dropping = runner_of(folder, dtype), runner_of(folder, dtype)
    for batch in (rows, [SequenceRows([i + 3], r.end, r.block_table) for i, r in enumerate(rows)]):
        expected = last_rows(whole, batch)
        assert torch.equal(dropping.last_logits(batch), expected)
        assert expected.isfinite().all()
    assert same_cache(whole, dropping)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_in_one_call_is_the_pass_the_look_and_the_draws(
    native_ops: CpuOps, tmp_path: Path, dtype: str
) -> None:
    folder = tiny.make_folder(tmp_path / "model", SHAPES["llama"], tensors=weights(SHAPES["llama"]))
    (rows, _), count, broken = sequences(9), 9, 4
    kinds = [*KINDS, {"temperature": 1.3, "repetition_penalty": 1.7}]
    params = [SamplingParams(**kinds[i % 4]) for i in range(count)]
    seen = [[5 * i, 5 * i + 1, 5 * i] for i in range(count)]
    stepped, looped = runner_of(folder, dtype), runner_of(folder, dtype)
    for runner in (stepped, looped):
        runner.forward(rows)
        runner.cache.v[1][rows[broken].block_table[0], 0] = float("nan")
    for step in range(3):
        batch = [SequenceRows([7 * i + step], r.end + step, r.block_table) for i, r in enumerate(rows)]
        sampling = SamplingBatch(params, [noise_key(i, 0, step) for i in range(count)], seen, 300)
        expected = last_rows(looped, batch)
        tokens, finite, logits = stepped.step(batch, sampling)
        assert torch.equal(logits.nan_to_num(9.0), expected.nan_to_num(9.0))
        assert (~finite).nonzero().tolist() == [[broken]]
        drawn = native_ops.sample(expected.nan_to_num(0.0), sampling)
        assert torch.equal(tokens[finite], drawn[finite])
    alone = stepped.step(batch[:1], sampling.rows([0]))  # a sequence alone gives the same
    assert torch.equal(alone[2], logits[:1])
    assert torch.equal(alone[0], tokens[:1])


def test_a_pass_needs_a_row_of_every_sequence(folder: Path) -> None:
    runner = tiny.load(folder, backend="native").engine.worker.runner
    batch = [SequenceRows([5], 0, [0]), SequenceRows([], 3, [1])]
    with pytest.raises(RuntimeError, match="last_logits: sequence 1 has no rows"):
        runner.last_logits(batch)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"depths": [2, 3]}, "depths rise"),
        ({"depths": [40, 1]}, "needs 3 blocks, its table has 2"),
        ({"blocks": [0, 9999], "depths": [20, 1]}, "block 9999"),
        ({"ids": [400]}, "id 400"),
        ({"num_token_ids": 999}, "num_token_ids is 999"),
        ({"penalty": 1.5}, "repetition penalties"),
        ({"depths": [300, 1], "blocks": list(range(20))}, "position"),
    ],
    ids=str,
)
def test_what_would_read_or_write_elsewhere_is_refused(
    folder: Path, changes: dict[str, Any], says: str
) -> None:
    llm = tiny.load(folder, backend="native", max_model_len=256)
    blocks = changes.get("blocks", [0, 1])
    rows = [SequenceRows(changes.get("ids", [5]), 0, blocks), SequenceRows([6], 0, blocks)]
    depths = changes.get("depths", [3, 1])
    params = [SamplingParams(repetition_penalty=changes.get("penalty", 1.0))] * 2
    batch = SamplingBatch(params, [0, 0], [(), ()], changes.get("num_token_ids", 300))
    with pytest.raises(RuntimeError, match=says):
        llm.engine.worker.runner.decode_ahead(rows, depths, [[1] * depth for depth in depths], batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_broken_rows_are_found(native_ops: CpuOps, dtype: torch.dtype) -> None:
    for width in (1, 7, 64, 4097):
        logits = torch.randn(40, width).to(dtype) * 100
        logits[3] = torch.finfo(dtype).max
        logits[4] = -torch.finfo(dtype).tiny
        for row, value in ((5, "nan"), (17, "inf"), (38, "-inf")):
            logits[row, (row * 31) % width] = float(value)
        found = native_ops.finite_rows(logits)
        assert torch.equal(found, ReferenceOps().finite_rows(logits))
        assert (~found).nonzero().flatten().tolist() == [5, 17, 38]
    assert native_ops.finite_rows(torch.empty(0, 8, dtype=dtype)).tolist() == []
