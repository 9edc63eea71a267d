"""A whole pass over a model with experts: the host asks for the same whatever experts are chosen.

The bits are compared in test_cuda_pass.py and test_cuda_buckets.py, the kernels in test_cuda_experts.py.
"""

from __future__ import annotations

from pathlib import Path

import families
import pytest
import tiny
import torch
from test_cuda_pass import bind, caches, load, sampling, steps

from minillm.ops.simt import flavour, profile, schedule
from minillm.toolchain.sanitizer import sanitizing


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_pass_with_experts_is_free_of_races(tmp_path: Path, family: str) -> None:
    decoder = load(families.make_folder(tmp_path, family), "bfloat16")
    fused = bind(decoder, caches(decoder))
    with flavour("check"), schedule(reverse=True):
        for ids, meta in steps():
            assert fused.step(ids, meta, sampling(0))[1].all()


@pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
def test_a_step_of_a_model_with_experts(tmp_path: Path) -> None:
    """16 launches a layer of experts, 11 another, of any tokens, and so for any experts; one wait."""
    decoder = load(families.make_folder(tmp_path, "qwen3_moe"), "bfloat16")
    fused, (ids, meta) = bind(decoder, caches(decoder)), steps()[1]
    with profile() as one:
        fused.step(ids, meta, sampling(1))
    assert (one.copies_to_device, one.copies_to_host, one.waits) == (1, 1, 1)

    with_experts = [spec.experts is not None for spec in decoder.config.layers]
    found = []
    for others in (ids, ids * 17 % tiny.VOCAB_SIZE, torch.zeros_like(ids)):
        with profile() as one:
            fused.last_logits(others, meta)
        assert one.launches == sum(16 if here else 11 for here in with_experts) + 3  # embedding, norm, head
        grids = {name: (c.launches, c.blocks) for name, c in one.kernels.items()}
        found.append((grids, one.tensors["gate_up"]))
    assert found[0][0] == found[1][0] == found[2][0]
    assert found[0][1] != found[2][1]  # the control: equal tokens use fewer experts, and read fewer matrices
