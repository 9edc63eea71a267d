"""Finding and opening a model folder: errors name what is missing and say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny

from minillm import LLM, MinillmError
from minillm.config.sizes import format_bytes, parse_bytes
from minillm.engine.kv_manager import KVCacheManager
from minillm.errors import (
    BackendError,
    KVCapacityError,
    ModelNotFound,
    OutOfMemory,
    TokenizerError,
    UnsupportedModel,
    UsageError,
)
from minillm.model.families import load_model_config
from minillm.model.loader import _warn_once, make_ops
from minillm.ops.reference import ReferenceOps
from minillm.toolchain.compiler import BuildFailed


def refused(kind: type[MinillmError], exit_code: int, model: Any, **options: Any) -> str:
    """The message of a refusal: of this type, one line, with a hint."""
    with pytest.raises(kind) as caught:
        tiny.load(model, **options)
    assert caught.value.exit_code == exit_code
    assert caught.value.hint and "\n" not in str(caught.value)
    return str(caught.value)


# ---- finding --------------------------------------------------------------------------------------


def test_missing_folder_suggests_near_names(tmp_path: Path) -> None:
    tiny.make_folder(tmp_path / "fables")
    assert "did you mean fables?" in refused(ModelNotFound, 3, tmp_path / "fabels")
    assert "did you mean" not in refused(ModelNotFound, 3, tmp_path / "zzzzzz")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    file = tiny.make_folder(tmp_path) / "config.json"
    assert "is a file" in refused(ModelNotFound, 3, file)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~no_such_user_here/model"])
def test_impossible_names(name: str) -> None:
    assert "no model folder" in refused(ModelNotFound, 3, name)


@pytest.mark.parametrize("model", [5, 1.5, ["a"], b"folder", True])
def test_model_of_another_type(model: Any) -> None:
    with pytest.raises(UsageError, match="model must be"):
        tiny.load(model)


def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise OSError("no network\nmany\nlines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "no network" in refused(ModelNotFound, 3, "some-owner/some-model")


def test_hub_download_asks_for_no_code(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    tiny.load("some-owner/some-model")
    assert asked["repo_id"] == "some-owner/some-model"
    assert not [p for p in asked["allow_patterns"] if not p.endswith((".json", ".safetensors", ".jinja"))]


# ---- config.json ----------------------------------------------------------------------------------


def test_folder_without_config(tmp_path: Path) -> None:
    assert "config.json" in refused(ModelNotFound, 3, tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"a": }', b"[" * 100_000])
def test_broken_config(tmp_path: Path, content: bytes) -> None:
    tiny.make_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in refused(UnsupportedModel, 4, tmp_path)


LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, "T5"),
        ({"architectures": []}, "model_type"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "spiral"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0, "high_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": YARN | {"beta_fast": "many"}}, "beta_fast"),
        ({"rope_scaling": YARN | {"mscale": "x", "mscale_all_dim": 1.0}}, "mscale"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": 1.0, "rope_scaling": YARN}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"no_such_key": 1}, "no_such_key"),
    ],
    ids=lambda v: str(v)[:60],
)
def test_configs_that_are_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    tiny.make_folder(tmp_path)
    cfg = tiny.config(**changes)
    if changes.get("architectures") == []:
        del cfg["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    with pytest.raises(UnsupportedModel, match=named) as caught:
        tiny.load(tmp_path, dtype="auto")
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


def test_model_larger_than_the_memory(tmp_path: Path) -> None:
    tiny.make_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config(vocab_size=10**12)))
    assert "TiB" in refused(OutOfMemory, 7, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config(max_position_embeddings=10**13)))
    assert "rope tables" in refused(OutOfMemory, 7, tmp_path)
    tiny.load(tmp_path, max_model_len=64)  # control: the tables are as long as max_model_len


def test_memory_that_is_just_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders: what fits exactly fits; one byte less does not."""
    folder = tiny.make_folder(tmp_path)
    config = load_model_config(folder)

    def free(count: int) -> None:
        monkeypatch.setattr("minillm.model.memory.free_memory", lambda device: count)

    weights = 4 * config.num_parameters
    tables = 4 * 256 * (config.head_dim // 2) * 4  # at the peak four float32 tables, a row per position
    free(weights + tables)
    tiny.load(folder)
    free(weights + tables - 1)
    message = refused(OutOfMemory, 7, folder)
    assert "float32" in message and "dtype bfloat16 would fit" in message
    free(weights // 2 + tables)
    tiny.load(folder, dtype="bfloat16")
    free(weights // 2 + tables - 1)
    assert "smaller model" in refused(OutOfMemory, 7, folder, dtype="bfloat16")
    free(tables - 1)
    assert "rope tables" in refused(OutOfMemory, 7, folder)
    free(tables)
    assert "weights" in refused(OutOfMemory, 7, folder)


def test_kv_memory_that_is_just_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = tiny.blocks(5)
    monkeypatch.setattr("minillm.memory.budget.free_memory", lambda device: pool)
    assert tiny.load(folder, kv_memory=pool).engine.pool.num_blocks == 5
    assert "are free" in refused(KVCapacityError, 7, folder, kv_memory=pool + 1)
    # "auto": a quarter of what is free, and no more than all sequences at full context can use.
    monkeypatch.setattr("minillm.memory.budget.free_memory", lambda device: 4 * pool + 3)
    assert tiny.load(folder, kv_memory="auto").engine.pool.num_blocks == 5
    monkeypatch.setattr("minillm.memory.budget.free_memory", lambda device: 1 << 40)
    auto = tiny.load(folder, kv_memory="auto", max_model_len=33, max_num_seqs=2)
    assert auto.engine.pool.num_blocks == 2 * 3
    assert refused(KVCapacityError, 7, folder, kv_memory=tiny.blocks(1) - 1)


def test_the_context_has_a_border(folder: Path) -> None:
    assert tiny.load(folder).engine.model.max_model_len == 256
    assert tiny.load(folder, max_model_len=256).engine.model.max_model_len == 256
    assert tiny.load(folder, max_model_len=1).engine.model.max_model_len == 1
    assert "256 positions" in refused(UsageError, 2, folder, max_model_len=257)


def test_the_vocabulary_has_a_border(folder: Path) -> None:
    llm = tiny.load(folder)
    vocab_size = llm.engine.model.config.vocab_size
    assert llm.engine.model.token_ids((0, vocab_size - 1)) == [0, vocab_size - 1]
    for bad in (vocab_size, -1):
        with pytest.raises(UsageError):
            llm.engine.model.token_ids([5, bad])


# ---- the tokenizer and the model ------------------------------------------------------------------


def test_tokenizer_larger_than_the_vocabulary(tmp_path: Path) -> None:
    cfg = tiny.config(vocab_size=100)
    message = refused(TokenizerError, 6, tiny.make_folder(tmp_path, cfg))
    assert "100" in message
    num_ids = tiny.byte_level_tokenizer().get_vocab_size()
    tiny.make_folder(tmp_path, tiny.config(vocab_size=num_ids - 1))
    assert str(num_ids) in refused(TokenizerError, 6, tmp_path)
    tiny.load(tiny.make_folder(tmp_path, tiny.config(vocab_size=num_ids)))  # control: a row for each id


def test_smaller_tokenizers_are_padded_models(folder: Path) -> None:
    """Control: more rows than ids is usual (padding); the id mask matters only then."""
    model = tiny.load(folder).engine.model
    assert model.num_token_ids < model.config.vocab_size


def test_folder_without_tokenizer_takes_ids_only(tmp_path: Path) -> None:
    tiny.make_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    llm = tiny.load(tmp_path)
    assert len(llm.generate([5, 6, 7])[0].token_ids) > 0
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        llm.generate("text")


# ---- the backend ----------------------------------------------------------------------------------


def test_without_a_compiler_only_native_insists(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise BuildFailed("no compiler was found")

    monkeypatch.setattr("minillm.model.loader.CpuOps", fail)
    with pytest.raises(BackendError, match="no compiler was found"):
        make_ops("native", "cpu")
    _warn_once.cache_clear()
    for _ in range(2):
        assert type(make_ops("auto", "cpu")) is ReferenceOps
    assert caplog.text.count("no compiler was found") == 1, "said once"
    caplog.clear()
    assert type(make_ops("reference", "cpu")) is ReferenceOps
    assert caplog.text == ""


# ---- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"device": "tpu"}, UsageError),
        ({"dtype": "int8"}, UsageError),
        ({"dtype": ["float32"]}, UsageError),
        ({"backend": "fast"}, UsageError),
        ({"block_size": 0}, UsageError),
        ({"block_size": 1.5}, UsageError),
        ({"max_num_seqs": -1}, UsageError),
        ({"prefill_chunk": "512"}, UsageError),
        ({"max_queued_requests": True}, UsageError),
        ({"max_model_len": 0}, UsageError),
        ({"max_model_len": 257}, UsageError),
        ({"seed": 1.0}, UsageError),
        ({"colour": "red"}, UsageError),
        ({"kv_memory": "lots"}, UsageError),
        ({"kv_memory": ""}, UsageError),
        ({"kv_memory": "-5MiB"}, UsageError),
        ({"kv_memory": 0}, UsageError),
        ({"kv_memory": -1}, UsageError),
        ({"kv_memory": 1.5}, UsageError),
        ({"kv_memory": None}, UsageError),
        ({"kv_memory": "nan"}, UsageError),
        ({"kv_memory": "9" * 400}, UsageError),
        ({"kv_memory": 10**30}, KVCapacityError),
        ({"kv_memory": "900TiB"}, KVCapacityError),
        ({"kv_memory": 100}, KVCapacityError),
        ({"block_size": 10**9}, KVCapacityError),
        ({"parts": {"sampler": 5}}, UsageError),
        ({"parts": {"nonsense": print}}, UsageError),
        ({"parts": {"drafter": print}}, UsageError),
    ],
    ids=str,
)
def test_bad_options(folder: Path, options: dict[str, Any], kind: type[MinillmError]) -> None:
    with pytest.raises(kind) as caught:
        tiny.load(folder, **options)
    assert "\n" not in str(caught.value)
    assert any(key in str(caught.value) for key in options) or "parts" in options


def test_options_of_tenants_at_their_defaults(folder: Path) -> None:
    """The documented defaults change nothing, and no limits are no lanes."""
    for options in (
        {"public_prefixes": (), "tenant_limits": None},
        {"public_prefixes": [], "tenant_limits": {}},
    ):
        assert type(tiny.load(folder, **options).engine.memory) is KVCacheManager


def test_kv_memory_too_small_says_what_a_block_needs(folder: Path) -> None:
    message = refused(KVCapacityError, 7, folder, kv_memory=100)
    assert format_bytes(16 * tiny.BLOCK_BYTES) in message
    tiny.load(folder, kv_memory=tiny.blocks(1))  # control: one block is enough to start


@pytest.mark.parametrize("count", [1, 2, 7])
def test_kv_memory_is_never_exceeded(folder: Path, count: int) -> None:
    for spare in (0, 1, 16 * tiny.BLOCK_BYTES - 1):
        llm = tiny.load(folder, kv_memory=tiny.blocks(count) + spare)
        assert llm.engine.pool.num_blocks == count
        assert llm.engine.worker.runner.cache.nbytes == tiny.blocks(count)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("1KiB", 1024),
        ("1 KB", 1000),
        ("1.5MiB", 3 << 19),
        ("2g", 2 << 30),
        (7, 7),
        (" 1k ", 1024),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


def test_default_model_missing_is_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("minillm.model.locate.ZOO", tmp_path)
    with pytest.raises(ModelNotFound) as caught:
        LLM()
    assert caught.value.exit_code == 3 and caught.value.hint
