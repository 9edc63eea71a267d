"""The memory estimate of a model with experts counts the rows that lie between the experts' matrices."""

from __future__ import annotations

import families
import pytest
import torch

from minillm.model.decoder import Decoder
from minillm.model.families import parse_config
from minillm.model.memory import weight_bytes
from minillm.ops.reference import ReferenceOps


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mixtral", {"intermediate_size": 1}),
        ("gpt_oss", {"intermediate_size": 9, "hidden_size": 90}),
        ("qwen3_moe", {"moe_intermediate_size": 40}),
        ("llama", {}),
    ],
)
def test_the_estimate_is_what_is_allocated(family: str, changes: dict[str, int]) -> None:
    config = parse_config(families.config(family, **changes))
    decoder = Decoder.build(config, ReferenceOps(), torch.float32, torch.device("cpu"), 8)
    assert sum(p.nbytes for p in decoder.parameters()) == weight_bytes(config, torch.float32)
