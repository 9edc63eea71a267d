"""Keys of config.json that no family reads: harmless, of one harmless value, unsupported, or unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm import LLM, SamplingParams
from minillm.cli.generate import stats_line
from minillm.config import EngineConfig
from minillm.errors import UnsupportedModel, UsageError
from minillm.model.config_keys import ONLY_AT, UNSUPPORTED, is_harmless
from minillm.model.families import FAMILIES, parse_config

GREEDY = SamplingParams(max_tokens=2, temperature=0)
# Beside the keys that a family reads: what real configs of 2023 to 2026 hold.
PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolLM2, saved by transformers 5": {
        "unk_token_id": 0, "_model_name_or_path": "a/b", "is_llama_config": True, "rope_interleaved": False,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "pad_token_id": 2,
        "transformers_version": "5.24.0", "chunk_size_feed_forward": 0, "return_dict": True,
        "output_attentions": False, "problem_type": None, "id2label": {"0": "L"}, "label2id": {"L": 0},
    },
    "unsloth": {"unsloth_fixed": True, "unsloth_version": "2025.12.5", "_attn_implementation_autoset": True},
    "a trainer's": {"gradient_checkpointing": True, "loss_type": "ForCausalLM",
                    "use_flash_attention_2": True, "resid_pdrop": 0.0, "embd_pdrop": 0.1,
                    "neftune_noise_alpha": 5, "classifier_dropout": 0.1},
    "PaddleNLP": {"alibi": False, "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1,
                  "paddlenlp_version": None, "rope_scaling_factor": 1.0, "rope_scaling_type": None,
                  "use_recompute": False, "virtual_pp_degree": 1, "use_fused_rope": True},
    "labels of tokens": {"mask_token_id": 4, "image_token_id": 9, "fim_suffix_token_ids": [1, 2]},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("family", FAMILIES)
def test_published_keys_do_not_stop_a_model(name: str, family: str) -> None:
    raw = tiny.config_of(family)
    assert parse_config(raw | PUBLISHED[name]) == parse_config(raw)


def test_harmless_keys_change_no_logits(tmp_path: Path) -> None:
    plain = tiny.load(tiny.make_folder(tmp_path / "plain"))
    keys = {key: value for more in PUBLISHED.values() for key, value in more.items()}
    more = tiny.load(tiny.make_folder(tmp_path / "more", tiny.config(**keys)))
    assert torch.equal(plain.logits([5, 6, 7]), more.logits([5, 6, 7]))
    assert more.engine.envelope == plain.engine.envelope


def test_no_key_that_is_read_counts_as_harmless() -> None:
    read = {"vocab_size", "rope_theta", "head_dim"}
    for family in FAMILIES.values():
        read |= family.reads | family.aliases.keys() | set(family.spelled.values())
    assert [key for key in (*read, *ONLY_AT, *UNSUPPORTED) if is_harmless(key)] == ["max_window_layers"]


def test_an_unknown_key_is_refused_with_the_way_past_it(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path, tiny.config(my_key=1))
    with pytest.raises(UnsupportedModel, match=r"my_key.*--allow-config-key my_key.*allow_config_keys"):
        tiny.load(folder)
    with pytest.raises(UnsupportedModel, match="my_key"):
        tiny.load(folder, allow_config_keys=("other_key",))


def test_an_allowed_key_is_on_record(tmp_path: Path) -> None:
    plain = tiny.load(tiny.make_folder(tmp_path / "plain"), allow_config_keys=["my_key"])
    llm = tiny.load(tiny.make_folder(tmp_path / "more", tiny.config(my_key=1)), allow_config_keys=["my_key"])
    output = llm.generate([[5, 6]], GREEDY)[0]
    assert output.envelope["allowed_config_keys"] == "my_key" and "my_key" in stats_line(output)
    other = plain.generate([[5, 6]], GREEDY)[0]
    assert "allowed_config_keys" not in other.envelope and "my_key" not in stats_line(other), "not needed"
    assert output.envelope["kv"] != other.envelope["kv"]
    assert output.token_ids == other.token_ids


def test_what_cannot_be_allowed(tmp_path: Path) -> None:
    for keys, word in (({"quantization_config": {"bits": 4}}, "quant_method"), ({"alibi": True}, "alibi")):
        folder = tiny.make_folder(tmp_path, tiny.config(**keys))
        with pytest.raises(UnsupportedModel, match=word):
            tiny.load(folder, allow_config_keys=list(keys))


@pytest.mark.parametrize("bad", ["my_key", 5, None, [1], {"my_key": 1}])
def test_allow_config_keys_is_a_list_of_keys(bad: Any) -> None:
    with pytest.raises(UsageError, match="allow_config_keys"):
        EngineConfig(allow_config_keys=bad)


def test_a_draft_model_with_an_allowed_key(tmp_path: Path) -> None:
    target = tiny.make_folder(tmp_path / "target")
    draft = tiny.make_folder(tmp_path / "draft", tiny.config(my_key=1))
    with pytest.raises(UnsupportedModel, match=r"draft model.*my_key"):
        LLM(target, draft_model=draft, kv_memory="4MiB")
    llm = LLM(target, draft_model=draft, kv_memory="4MiB", allow_config_keys=("my_key",))
    assert llm.generate([[5, 6]], GREEDY)[0].envelope["allowed_config_keys"] == "my_key"
