"""docs/families.md: its table is what the families' configs say, and each has a section."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pages import ROOT, page

from minillm.config import ModelConfig
from minillm.model.families import FAMILIES, parse_config

PAGE = page("docs/families.md")
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
GPT2_SHAPE = {"vocab_size": 64, "n_embd": 64, "n_layer": 12, "n_head": 8}
PLACES = {"pre": "before", "post": "after", "sandwich": "both sides"}
QK_NORMS = {None: "", "head": "each head", "wide": "all heads"}
COUNTS = {
    "every layer": (12, 12),
    "every 2nd layer": (6, 12),
    "3 of 4 layers": (9, 12),
    "5 of 6 layers": (10, 12),
}


def rows() -> dict[str, list[str]]:
    """The table's cells by `model_type`."""
    table = PAGE.text.partition("## All of them")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return {row[0].strip("`"): (row + [""] * 7)[1:7] for row in cells}


def config_of(name: str) -> ModelConfig:
    """The config of a file that gives sizes only: what the family itself says."""
    raw: dict[str, Any] = GPT2_SHAPE if name == "gpt2" else SHAPE
    return parse_config(raw | {"architectures": [FAMILIES[name].architecture], "model_type": name})


def test_every_family_has_a_row() -> None:
    assert list(rows()) and set(rows()) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_row_is_what_the_config_says(name: str) -> None:
    config, (norms, qk_norms, positions, windows, mlp, extras) = config_of(name), rows()[name]
    layer = config.layers[0]
    assert norms == PLACES[layer.norms] + (", LayerNorm" if config.norm_kind == "layer" else "")
    assert qk_norms == QK_NORMS[config.qk_norm]
    assert ("learned" in positions) == config.learned_positions == (not config.ropes)
    assert ("none in every 4th layer" in positions) == (sum(lay.rope is None for lay in config.layers) == 3)
    assert ("two ropes" in positions) == (len(config.ropes) == 2)
    assert ("yarn" in positions) == (layer.rope is not None and layer.rope.kind == "yarn")
    windowed = sum(lay.window is not None for lay in config.layers)
    assert (windowed, 12) == COUNTS.get(windows, (0, 12))
    gate = f"{config.activation}, {'gate' if config.gated else 'no gate'}"
    experts = layer.experts
    assert mlp == (f"{experts.count} experts, {experts.per_token} per token" if experts else gate)
    assert (extras.split("; ")[-1] == "weights sum to 1") == (experts is not None and experts.renormalize)
    assert ("1 + weight" in extras) == bool(config.norm_offset)
    assert ("embedding scale" in extras) == (config.embedding_scale != 1)
    assert ("caps" in extras) == (layer.softcap is not None) == (config.logits_softcap is not None)
    assert ("sinks" in extras) == layer.sinks
    assert ("clamped" in extras) == (config.activation == "swiglu_clamped")
    assert ("biases everywhere" in extras) == config.o_bias
    assert ("biases on q, k, v" in extras) == (config.qkv_bias and not config.o_bias)


def test_every_family_has_its_section_picture_and_sources() -> None:
    sections = re.split(r"^## ", PAGE.text, flags=re.MULTILINE)[3:-1]
    assert len(sections) == 14
    for section in sections:
        title = section.partition("\n")[0]
        assert "```text\n" in section, title
        for word in ("**Covers**", "**Refused**", "**Here**", "**In transformers**"):
            assert section.replace("\n", " ").count(word) == 1, f"{title}: {word}"
    named = set(re.findall(r"`models/(\w+)/modeling_(\w+)\.py`", PAGE.text))
    assert {kind for kind, _ in named} == {name.removesuffix("_text") for name in FAMILIES}
    assert all(folder == module for folder, module in named)
    files = set(re.findall(r"\]\(\.\./minillm/model/families/(\w+)\.py\)", PAGE.text)) - {"table"}
    own = {path.stem for path in (ROOT / "minillm" / "model" / "families").glob("*.py")}
    assert files == own - {"__init__", "family", "reader", "table", "windows"}
