"""Replaced parts in families that are not like Llama: used where they can be, refused where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from torch import Tensor

from minillm import LLM
from minillm.errors import UsageError
from minillm.model.families import FAMILIES
from minillm.ops.reference import ReferenceOps, apply_rope, read_cache, write_cache

IDS = [(i * 7919 + 13) % 300 for i in range(45)]
ATTENTION = {"attention": ReferenceOps().paged_attention, "read_cache": read_cache}
REFUSED = {"gemma2": "layer 0: its attention has a softcap", "gpt_oss": "layer 0: its attention has sinks"}
WITH_EXPERTS = ("qwen3_moe", "olmoe", "mixtral", "gpt_oss")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("families")
    return {family: families.make_folder(base, family) for family in FAMILIES}


def load(folder: Path, **options: Any) -> LLM:
    return tiny.load(folder, **({"backend": "reference", "kv_memory": "16MiB"} | options))


@pytest.mark.parametrize("part", ATTENTION)
@pytest.mark.parametrize("family", REFUSED)
def test_attention_that_would_not_be_used_is_refused(
    folders: dict[str, Path], family: str, part: str
) -> None:
    with pytest.raises(UsageError, match=f"part '{part}' is not used by {REFUSED[family]}"):
        load(folders[family], parts={part: ATTENTION[part]})


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(REFUSED)))
def test_attention_is_used_in_every_layer(folders: dict[str, Path], family: str) -> None:
    """The control of the test before: in all other families a replaced attention sees every layer."""
    for name, part in ATTENTION.items():
        calls = []

        def mine(*args: Any, part: Any = part, calls: list[Any] = calls) -> Any:
            calls.append(args)
            return part(*args)

        llm = load(folders[family], parts={name: mine})
        found = llm.logits(IDS)
        assert len(calls) == llm.engine.model.config.num_hidden_layers * (2 if name == "read_cache" else 1)
        assert torch.equal(found, load(folders[family]).logits(IDS))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_parts_work_in_every_family(folders: dict[str, Path], family: str) -> None:
    parts = {"rope": apply_rope, "write_cache": write_cache, "linear": ReferenceOps().linear}
    found = load(folders[family], parts=parts).logits(IDS)
    assert torch.equal(found, load(folders[family]).logits(IDS))


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_a_replaced_linear_computes_the_experts(folders: dict[str, Path], family: str) -> None:
    """Every chosen expert's matrices go through it; the control is a `linear` that gives zero for them."""
    config = load(folders[family]).engine.model.config
    experts = [layer.experts for layer in config.layers if layer.experts is not None]
    inner, shapes = experts[0].size, list[tuple[int, ...]]()

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(tuple(weight.shape))
        return ReferenceOps().linear(x, weight, bias)

    def without_experts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = counting(x, weight, bias)
        return torch.zeros_like(out) if weight.shape == (config.hidden_size, inner) else out

    expected = load(folders[family]).logits(IDS)
    assert torch.equal(load(folders[family], parts={"linear": counting}).logits(IDS), expected)
    assert (2 * inner, config.hidden_size) in shapes and (config.hidden_size, inner) in shapes
    changed = load(folders[family], parts={"linear": without_experts}).logits(IDS)
    assert (changed - expected).abs().max() > 0.1
