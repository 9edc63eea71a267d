"""Config keys that are given in two places, left out, or null: which one counts, and what is reported."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny

from minillm.errors import UnsupportedModel
from minillm.model.config_reader import ConfigReader
from minillm.model.families import parse_config

LEFT_OUT = "left out"
PLAIN = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 2.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
OLDER, NEWER, SIZE = "rope_scaling", "rope_parameters", "original_max_position_embeddings"


def parsed(**changes: Any) -> Any:
    cfg = tiny.config(**{key: value for key, value in changes.items() if value is not LEFT_OUT})
    return parse_config({k: v for k, v in cfg.items() if changes.get(k) is not LEFT_OUT})


ROPE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rope_theta": LEFT_OUT}, {"kind": "default", "theta": 10000.0}),
    ({"rope_theta": 5e5}, {"theta": 5e5}),
    ({NEWER: PLAIN | {"rope_theta": 1e6}}, {"theta": 1e6}),
    ({"rope_theta": 5e5, NEWER: PLAIN}, {"theta": 5e5}),
    # In both places: the one inside.
    ({"rope_theta": 5e5, NEWER: PLAIN | {"rope_theta": 1e6}}, {"theta": 1e6}),
    ({"rope_theta": 5e5, OLDER: LINEAR | {"rope_theta": 1e6}}, {"theta": 1e6}),
    # Both dictionaries: rope_scaling alone is read.
    ({OLDER: LINEAR, NEWER: DYNAMIC | {"rope_theta": 1e6}}, {"kind": "linear", "theta": 10000.0}),
    ({OLDER: None, NEWER: DYNAMIC}, {"kind": "dynamic", "factor": 3.0}),
    ({OLDER: {}, NEWER: DYNAMIC}, {"kind": "dynamic", "factor": 3.0}),
    # Both names of the kind: the newer.
    ({OLDER: LINEAR | {"type": "dynamic"}}, {"kind": "linear"}),
    ({OLDER: {"type": "linear", "factor": 2.0}}, {"kind": "linear", "factor": 2.0}),
    # The original length: beside the dictionary, else in it, else the length itself.
    ({OLDER: LLAMA3, SIZE: 64}, {"original_max_position": 64}),
    ({OLDER: LLAMA3 | {SIZE: 32}}, {"original_max_position": 32}),
    ({OLDER: LLAMA3 | {SIZE: 32}, SIZE: 64}, {"original_max_position": 64}),
    ({OLDER: LLAMA3}, {"original_max_position": 256, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    # Dynamic looks at max_position_embeddings, whatever the original length is said to be.
    ({OLDER: DYNAMIC | {SIZE: 32}}, {"original_max_position": 256}),
    # YaRN: what is left out, and 0 or null for "none".
    ({OLDER: YARN | {SIZE: 64}}, {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}),
    ({OLDER: {"rope_type": "yarn", SIZE: 64}}, {"factor": 4.0}),
    ({OLDER: YARN | {"beta_fast": 0, "beta_slow": None}}, {"beta_fast": 32.0, "beta_slow": 1.0}),
    ({OLDER: YARN | {"beta_fast": 16.0, "beta_slow": 2.0}}, {"beta_fast": 16.0, "beta_slow": 2.0}),
    ({OLDER: YARN | {"truncate": False}}, {"truncate": False}),
    ({OLDER: YARN}, {"attention_factor": 0.1 * math.log(4) + 1}),
    (
        {OLDER: YARN | {"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 1.0}},
        {"attention_factor": 1.5},
    ),
    (
        {OLDER: YARN | {"mscale": 2.0, "mscale_all_dim": 1.0}},
        {"attention_factor": (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)},
    ),
    ({OLDER: YARN | {"mscale": 0, "mscale_all_dim": 0}}, {"attention_factor": 0.1 * math.log(4) + 1}),
    ({OLDER: YARN | {"mscale": 2.0, "mscale_all_dim": 0}}, {"attention_factor": 0.1 * math.log(4) + 1}),
]


@pytest.mark.parametrize(("changes", "expected"), ROPE, ids=lambda v: str(v)[:70])
def test_rope_given_in_several_places(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    (rope,) = parsed(**({"rope_theta": LEFT_OUT} | changes)).ropes
    found = {name: getattr(rope, name) for name in expected}
    assert found == pytest.approx(expected) if "kind" not in expected else found == expected


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({OLDER: {"rope_type": "linear"}}, "factor"),
    ({OLDER: {"rope_type": "dynamic"}}, "factor"),
    ({OLDER: {"factor": 2.0}}, "rope_type"),
    ({OLDER: {"rope_type": "llama3", "factor": 2.0, "high_freq_factor": 4.0}}, "low_freq_factor"),
    ({OLDER: LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor"),
    ({OLDER: LLAMA3 | {"low_freq_factor": 5.0}}, "low_freq_factor"),
    ({OLDER: LINEAR | {"low_freq_factor": 1.0}}, "low_freq_factor"),
    ({OLDER: PLAIN | {"no_such": 1}}, "no_such"),
    ({OLDER: YARN, "rope_theta": 1.0}, "rope_theta"),
    ({OLDER: YARN, "rope_theta": 0.5}, "rope_theta"),
    ({OLDER: LINEAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({OLDER: LINEAR | {"factor": 0}}, "factor"),
    ({NEWER: {"full_attention": PLAIN}}, "full_attention"),
]


@pytest.mark.parametrize(("changes", "named"), REFUSED, ids=lambda v: str(v)[:70])
def test_ropes_that_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        parsed(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        # Keys of other kinds, without effect where the kind is "default"; null; the only harmless value.
        {NEWER: PLAIN | {"factor": 2.0, "beta_fast": 32.0}},
        {OLDER: LINEAR | {"low_freq_factor": None}},
        {OLDER: LINEAR | {"partial_rotary_factor": 1.0}},
        {OLDER: LLAMA3 | {"low_freq_factor": 3.9}},
        {OLDER: YARN, "rope_theta": 1.5},
    ],
    ids=str,
)
def test_control_ropes_that_are_not(changes: dict[str, Any]) -> None:
    parsed(**changes)


WINDOW = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


@pytest.mark.parametrize(
    ("changes", "field", "expected", "source"),
    [
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, "dtype", "float16", "dtype"),
        ({"dtype": None, "torch_dtype": "torch.bfloat16"}, "dtype", "bfloat16", "torch_dtype"),
        ({"torch_dtype": LEFT_OUT}, "dtype", None, None),
        ({"head_dim": LEFT_OUT}, "head_dim", 8, "head_dim"),
        ({"head_dim": None}, "head_dim", 8, "head_dim"),
        ({"head_dim": 16}, "head_dim", 16, "head_dim"),
        ({"num_key_value_heads": None}, "num_key_value_heads", 4, "num_key_value_heads"),
        ({"num_key_value_heads": LEFT_OUT}, "num_key_value_heads", 4, "num_key_value_heads"),
        ({"rms_norm_eps": LEFT_OUT}, "norm_eps", 1e-6, "rms_norm_eps"),
        ({"max_position_embeddings": LEFT_OUT}, "max_position_embeddings", 2048, "max_position_embeddings"),
        ({"eos_token_id": [3, -1, 4]}, "eos_token_ids", (3, 4), "eos_token_id"),
        ({"eos_token_id": 0}, "eos_token_ids", (0,), "eos_token_id"),
        ({"eos_token_id": LEFT_OUT}, "eos_token_ids", (), None),
        ({"bos_token_id": [7, 8]}, "bos_token_id", 7, "bos_token_id"),
        ({"bos_token_id": LEFT_OUT}, "bos_token_id", None, None),
    ],
    ids=lambda v: str(v)[:60],
)
def test_keys_left_out_or_given_twice(
    changes: dict[str, Any], field: str, expected: Any, source: str | None
) -> None:
    config = parsed(**changes)
    assert getattr(config, field) == expected
    if source:
        is_given = changes.get(source) is not LEFT_OUT and changes.get(source, 0) is not None
        assert config.sources[source] == ("config.json" if is_given else "default")


@pytest.mark.parametrize(
    ("raw", "default", "expected"),
    [
        ({"k": 5}, 9, 5),
        ({"k": 5}, None, 5),
        ({}, 9, 9),
        ({}, None, None),
        ({"k": None}, 9, None),
        ({"k": None}, None, None),
        ({"k": 1}, 9, 1),
    ],
)
def test_null_is_none_and_absent_is_the_default(raw: dict[str, Any], default: Any, expected: Any) -> None:
    cfg = ConfigReader(raw)
    assert cfg.optional_integer("k", default) == expected
    if "k" in raw:
        assert cfg.sources["k"] == "config.json"


@pytest.mark.parametrize("bad", [0, -1, True, 1.0, "1", [1]])
def test_integers_have_a_border(bad: Any) -> None:
    with pytest.raises(UnsupportedModel, match="k="):
        ConfigReader({"k": bad}).integer("k")
    if bad == 0 and bad is not False:
        assert ConfigReader({"k": 0}).integer("k", minimum=0) == 0
    assert ConfigReader({"k": 1}).integer("k") == 1


@pytest.mark.parametrize("bad", [0, 0.0, -1e-9, math.inf, math.nan, True, "1"])
def test_numbers_are_positive_and_finite(bad: Any) -> None:
    with pytest.raises(UnsupportedModel, match="k="):
        ConfigReader({"k": bad}).number("k")
    assert ConfigReader({"k": 1e-20}).number("k") == 1e-20
