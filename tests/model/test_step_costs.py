"""The prepared estimates of a step are those of `model/costs.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from minillm import LLM, SamplingParams
from minillm.model.costs import decode_flops, kv_bytes_read, prefill_flops
from minillm.observe.online import EngineMetrics

HEAD = 2 * tiny.VOCAB_SIZE * 32


WAYS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "a window": (8, {}),
    "weights in 4 bits": (None, {"quantization": "int4"}),
    "keys in 8 bits": (None, {"kv_dtype": "int8"}),
}


@pytest.fixture(params=WAYS)
def llm(request: pytest.FixtureRequest, tmp_path: Path) -> LLM:
    window, options = WAYS[request.param]
    config = tiny.mistral_config(window) if window else tiny.config()
    return tiny.load(tiny.make_folder(tmp_path / "model", config), prefill_chunk=16, **options)


def test_a_prompt_in_chunks_costs_what_it_costs_whole(llm: LLM) -> None:
    """But for the head, which runs once in each chunk."""
    costs, config = llm.engine.model.step_costs(), llm.engine.model.config
    chunks = [costs.prefill(start, min(start + 7, 40)) for start in range(0, 40, 7)]
    assert costs.prefill(0, 40).flops == prefill_flops(config, 40)
    assert sum(cost.flops for cost in chunks) == prefill_flops(config, 40) + (len(chunks) - 1) * HEAD
    assert sum(cost.written for cost in chunks) == 40 * config.kv_bytes_per_token(4)


def test_a_decoded_token_costs_what_it_costs_alone(llm: LLM) -> None:
    costs, config = llm.engine.model.step_costs(), llm.engine.model.config
    for context in (1, 7, 8, 9, 100):
        cost = costs.decode(1, 1, context)
        assert (cost.flops, cost.read) == (decode_flops(config, context), kv_bytes_read(config, context, 4))


def test_fewer_bits_cost_fewer_bytes_and_the_same_flops(folder: Path) -> None:
    """K and V of 2 layers and 2 heads: 8 codes and a scale. Weights: what the packed matrices take."""
    plain, packed, coded = (
        tiny.load(folder, **options).engine.model
        for options in ({}, {"quantization": "int4"}, {"kv_dtype": "int8"})
    )
    costs = [model.step_costs() for model in (plain, packed, coded)]
    assert [cost.decode(1, 1, 10).read for cost in costs] == [10 * tiny.BLOCK_BYTES] * 2 + [10 * 8 * (8 + 4)]
    assert [cost.decode(1, 1, 10).written for cost in costs] == [tiny.BLOCK_BYTES] * 2 + [8 * (8 + 4)]
    assert len({cost.decode(1, 1, 10).flops for cost in costs}) == 1
    weights = packed.decoder.weights()
    norms = 2 * len(packed.config.layers) + 1
    read = [m.nbytes for m in packed.decoder.matrices if m is not weights.embedding]
    assert costs[1].weight_bytes == sum(read) + norms * 32 * 4 < costs[0].weight_bytes
    assert costs[2].weight_bytes == costs[0].weight_bytes


def test_a_batch_costs_the_sum_of_its_sequences(folder: Path) -> None:
    model = tiny.load(folder).engine.model
    contexts = [3, 50, 120]
    cost = model.step_costs().decode(3, 3, sum(contexts))
    assert cost.flops == sum(decode_flops(model.config, context) for context in contexts)
    assert cost.read == sum(kv_bytes_read(model.config, context, 4) for context in contexts)


def test_a_run_is_the_sum_of_its_steps(llm: LLM) -> None:
    """Also the last step of a request, after which its blocks are free."""
    metrics, model = EngineMetrics(llm.engine), llm.engine.model
    with llm.engine.events.record() as trace:
        llm.generate([[5] * 20], SamplingParams(max_tokens=5, ignore_eos=True))
    contexts = [event["context"] for event in trace if event.kind == "step" and event["decode_rows"]]
    assert contexts == [21, 22, 23, 24]
    figures, config = metrics.steady, model.config
    assert figures.flops == prefill_flops(config, 20) + HEAD + sum(decode_flops(config, n) for n in contexts)
    assert figures.written_bytes == 24 * config.kv_bytes_per_token(4)
    passes = 2 + len(contexts)
    chunks = [kv_bytes_read(config, 16, 4), model.step_costs().prefill(16, 20).read]
    decoded = sum(kv_bytes_read(config, n, 4) for n in contexts)
    first = model.step_costs().prefill(0, 16).read
    assert first >= chunks[0]
    assert figures.read_bytes == passes * model.decoder.step_bytes() + first + chunks[1] + decoded
