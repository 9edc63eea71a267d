"""Replacing the weights or the tokenizer under a running engine is refused, whichever way it is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
import torch
from tokenizers import processors
from torch import Tensor, nn

from minillm import LLM, SamplingParams
from minillm.engine.live_change import LiveChange
from minillm.errors import ModelChanged
from minillm.model.blocks import Layer
from minillm.ops.contract import PackedWeight

PROMPT = list(range(5, 45))
PARAMS = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=3)


def norm(llm: LLM) -> nn.Parameter:
    return next(p for name, p in llm.engine.model.decoder.named_parameters() if "input_norm" in name)


def embedding(llm: LLM) -> Tensor:
    weight = llm.engine.model.decoder.embed_tokens
    return weight.data if isinstance(weight, PackedWeight) else weight


def first(llm: LLM) -> Layer:
    return cast(Layer, llm.engine.model.decoder.layers[0])


@torch.no_grad()
def written(llm: LLM) -> None:
    norm(llm).mul_(2)


@torch.no_grad()
def matrix_written(llm: LLM) -> None:
    embedding(llm).copy_(embedding(llm).flip(0))


def other_storage(llm: LLM) -> None:
    norm(llm).data = norm(llm).data * 2


def written_uncounted(llm: LLM) -> None:
    norm(llm).data.mul_(2)


@torch.no_grad()
def rope_written(llm: LLM) -> None:
    llm.engine.model.decoder.ropes[0][0].mul_(2)


def other_module(llm: LLM) -> None:
    first(llm).input_norm = first(llm).mlp_norm


def other_ops(llm: LLM) -> None:
    llm.engine.model.decoder.ops = cast(Any, object())


def added_token(llm: LLM) -> None:
    llm.tokenizer.rust.add_tokens(["brand-new"])


def other_processor(llm: LLM) -> None:
    llm.tokenizer.rust.post_processor = processors.TemplateProcessing(
        single="$A <s>", special_tokens=[("<s>", tiny.BOS)]
    )


def split_special(llm: LLM) -> None:
    llm.tokenizer.rust.encode_special_tokens = True


def other_template(llm: LLM) -> None:
    llm.tokenizer.chat_templates["default"] = "{{ messages[0]['content'] }}"


def other_bos(llm: LLM) -> None:
    llm.tokenizer.bos_token_id = 7


IN_STEPS = [written, matrix_written, other_storage, written_uncounted, rope_written]
OTHERS = [other_module, other_ops, added_token, other_processor, split_special, other_template, other_bos]


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("change", [*IN_STEPS, *OTHERS], ids=lambda change: change.__name__)
def test_a_changed_engine_takes_no_request(folder: Path, change: Callable[[LLM], None], backend: str) -> None:
    llm = tiny.load(folder, backend=backend)
    llm.generate([PROMPT], PARAMS)
    change(llm)
    calls: list[Callable[[], Any]] = [
        lambda: llm.engine.add_request(PROMPT, PARAMS),
        lambda: llm.generate([PROMPT], PARAMS),
        lambda: llm.stream(PROMPT, PARAMS),
        lambda: llm.logits(PROMPT),
    ]
    for call in calls:
        with pytest.raises(ModelChanged) as caught:
            call()
        assert caught.value.hint
    assert llm.engine.stats()["waiting"] == 0 and not llm.engine.has_unfinished_requests()


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("change", IN_STEPS, ids=lambda change: change.__name__)
def test_requests_in_flight_end_with_the_error(
    folder: Path, change: Callable[[LLM], None], backend: str
) -> None:
    """No token of the changed weights gets into an output that names the old ones, and no block is shared."""
    llm = tiny.load(folder, backend=backend)
    expected = [o.outputs[0].token_ids for o in llm.generate([PROMPT, PROMPT[::-1]], PARAMS)]
    engine = llm.engine
    ids = [engine.add_request(prompt, PARAMS) for prompt in (PROMPT, PROMPT[::-1])]
    before = engine.step()
    assert sorted(output.request_id for output in before) == sorted(ids)
    change(llm)
    outputs = {}
    while engine.has_unfinished_requests():
        try:
            outputs |= {output.request_id: output for output in engine.step()}
        except ModelChanged:
            continue
    for request_id, tokens in zip(ids, expected, strict=True):
        completion = outputs[request_id].outputs[0]
        assert completion.finish_reason == "error" and isinstance(outputs[request_id].error, ModelChanged)
        if change is not written_uncounted:  # that one is noticed at the end
            assert completion.token_ids == tokens[: len(completion.token_ids)]
    assert tiny.all_free(llm)


def test_what_would_happen_without_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the new weights read the blocks of the old ones, and the output names the old ones."""
    for name in ("check", "check_step", "check_content"):
        monkeypatch.setattr(LiveChange, name, lambda self: None)
    llm, fresh = tiny.load(folder), tiny.load(folder)
    before = llm.generate([PROMPT], PARAMS)[0]
    for each in (llm, fresh):
        written(each)
    mixed, right = llm.generate([PROMPT], PARAMS)[0], fresh.generate([PROMPT], PARAMS)[0]
    assert mixed.metrics.cached_tokens > 0 and right.metrics.cached_tokens == 0
    assert mixed.envelope == before.envelope
    assert mixed.outputs[0].logprobs != right.outputs[0].logprobs


@pytest.mark.parametrize("name", ["model", "worker", "config", "parts", "envelope", "memory", "guarantee"])
def test_attributes_are_fixed(folder: Path, name: str) -> None:
    llm, other = tiny.load(folder), tiny.load(folder)
    with pytest.raises(ModelChanged, match=name):
        setattr(llm.engine, name, getattr(other.engine, name))
    with pytest.raises(ModelChanged, match="engine"):
        llm.engine = other.engine
    with pytest.raises((ModelChanged, AttributeError)):
        cast(Any, llm).tokenizer = other.tokenizer
    with pytest.raises((ModelChanged, AttributeError)):
        cast(Any, llm.engine.model).tokenizer = other.tokenizer
    assert llm.generate([PROMPT], PARAMS)[0].error is None


def test_a_draft_model_counts(folder: Path) -> None:
    """Its cached blocks are read as well."""
    llm = tiny.load(folder, draft_model=str(folder))
    drafter = cast(Any, llm.engine.speculation).drafter
    llm.generate([PROMPT], PARAMS)
    with torch.no_grad():
        next(iter(drafter.runner.decoder.parameters())).mul_(2)
    with pytest.raises(ModelChanged):
        llm.generate([PROMPT], PARAMS)
