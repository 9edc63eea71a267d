"""`minillm quantize`: what it writes, what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.cli.main import main
from minillm.config import EngineConfig
from minillm.model.checkpoint import stored_tensors
from minillm.model.compress import folder as folders
from minillm.model.compress import layers, text
from minillm.model.compress.grid import Grid, Rounded
from minillm.model.compress.quality import measure
from minillm.model.loader import load_model
from minillm.ops.contract import Matrix
from minillm.ops.quantized import QuantizedMatrix

WORDS = "once upon a time there was a cat and the cat sat on the mat until the end "
ENGINE = EngineConfig(dtype="float32", device="cpu", backend="reference", max_model_len=32)
SMALL = tiny.config(torch_dtype="bfloat16")


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 32 tokens, and few of them."""
    monkeypatch.setattr(folders, "LENGTH", 32)
    monkeypatch.setattr(text, "_CALIBRATION", 6)
    monkeypatch.setattr(text, "_EVALUATION", 3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.make_folder(tmp_path / "model", SMALL, tensors=rounded(SMALL))


@pytest.fixture
def story(tmp_path: Path) -> str:
    path = tmp_path / "story.txt"
    path.write_text(WORDS * 40)
    return str(path)


def rounded(cfg: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in tiny.weights(cfg).items()}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The object that a successful command prints."""
    assert main(["quantize", *map(str, words), "--json"]) == 0
    out, _ = capsys.readouterr()
    found: dict[str, Any] = json.loads(out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and the one line of a command that fails."""
    try:
        code = main(["quantize", *map(str, words)])
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minillm: ") and err.count("\n") == 1, err
    return code, err


def unpacked(stored: dict[str, Tensor], name: str, group: int) -> Tensor:
    """The weights of a pack-quantized matrix of 4 bits, from the words of the format's definition."""
    out, size = stored[f"{name}.weight_shape"].tolist()
    words = stored[f"{name}.weight_packed"].long() & 0xFFFFFFFF
    codes = torch.stack([words >> 4 * i & 15 for i in range(8)], dim=-1).flatten(1)[:, :size]
    zeros: Any = 8
    if f"{name}.weight_zero_point" in stored:
        words = stored[f"{name}.weight_zero_point"].long() & 0xFFFFFFFF
        zeros = torch.stack([words >> 4 * i & 15 for i in range(8)], dim=1).flatten(0, 1)[:out]
        zeros = zeros.repeat_interleave(group, 1)
    scales = stored[f"{name}.weight_scale"].float().repeat_interleave(group, 1)
    return scales * (codes - zeros).float()


# ---- written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_folder(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], asymmetric: bool, calibrated: bool
) -> None:
    out = model.parent / "small"
    words = ["--asymmetric"] * asymmetric + ["--calibrate" if calibrated else "--evaluate", story]
    report = run(capsys, model, out, "--scheme", "w4a16", "--group", "32", *words)
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    matrices = [name.removesuffix(".weight") for name in before if "proj" in name]
    assert len(matrices) == report["matrices"] == 14
    for name in before.keys() - {f"{matrix}.weight" for matrix in matrices}:
        assert torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype
    for name in matrices:
        assert f"{name}.weight" not in after
        error = unpacked(after, name, 32) - before[f"{name}.weight"].float()
        scales = after[f"{name}.weight_scale"].float().repeat_interleave(32, 1)
        if not calibrated:
            assert (error.abs() <= scales * 0.6).all()
        assert 0 < error.norm() < 0.3 * before[f"{name}.weight"].float().norm()
    settings = json.loads((out / "config.json").read_text())
    described = settings.pop("quantization_config")
    assert settings == SMALL
    assert described["ignore"] == ["lm_head"] and described["format"] == "pack-quantized"
    assert described["config_groups"]["group_0"]["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": not asymmetric, "strategy": "group", "group_size": 32,
        "dynamic": False,
    }  # fmt: skip
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert sum(t.nbytes for t in stored_tensors(out).values()) == report["bytes"] < report["original_bytes"]
    assert report["method"] == ("GPTQ" if calibrated else "round to nearest")
    assert report["original_perplexity"] > 1 and 0 < report["greedy_agreement"] <= 1
    assert [path.name for path in model.parent.iterdir() if path.name.startswith(".")] == []


def test_what_is_measured_is_what_is_written(
    model: Path, story: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The perplexity of a plain model with the numbers of the written one."""
    out, plain = model.parent / "small", model.parent / "plain"
    report = run(capsys, model, out, "--scheme", "w4a16", "--group", "32", "--calibrate", story)
    stored = load_file(out / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in stored.items() if name.endswith("weight")}
    for name in [name for name in stored if name.endswith(".weight_packed")]:
        module = name.removesuffix(".weight_packed")
        weights[f"{module}.weight"] = unpacked(stored, module, 32)
    tiny.make_folder(plain, SMALL | {"torch_dtype": "float32"}, tensors=weights)
    again = run(capsys, plain, model.parent / "other", "--scheme", "w8a16", "--calibrate", story)
    assert again["original_perplexity"] == report["perplexity"]
    assert again["original_perplexity"] != report["original_perplexity"]


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "fp8"])
def test_the_engine_loads_the_same_numbers(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    out = model.parent / "small"
    group = ["--group", "32", "--asymmetric"] * (scheme == "w4a16")
    report = run(capsys, model, out, "--scheme", scheme, *group, "--calibrate", story)
    loaded = load_model(out, ENGINE)
    matrices = [matrix for matrix in loaded.decoder.matrices if isinstance(matrix, QuantizedMatrix)]
    assert len(matrices) == 8  # q, k and v are one, gate and up likewise
    found = measure(loaded.decoder, text.Texts(story).windows(loaded)[1])
    assert found.perplexity != report["original_perplexity"]
    assert found.perplexity == report["perplexity"]


def test_on_what_the_model_writes_itself(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, model, model.parent / "a", "--scheme", "w8a16", "--calibrate", "self")
    assert report["calibration"] == {"text": "written by the model itself", "tokens": 6 * 32}
    assert report["evaluation"] == {"text": "written by the model itself", "tokens": 3 * 32}
    assert report["perplexity"] == pytest.approx(report["original_perplexity"], rel=0.05)
    again = run(capsys, model, model.parent / "b", "--scheme", "w8a16", "--calibrate", "self")
    assert (model.parent / "a/model.safetensors").read_bytes() == (
        model.parent / "b/model.safetensors"
    ).read_bytes()
    assert again["perplexity"] == report["perplexity"]


def test_every_expert_has_inputs_of_its_own(
    tmp_path: Path, story: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = families.make_folder(tmp_path / "moe", "mixtral", hidden_size=64, intermediate_size=64)
    report = run(
        capsys, source, tmp_path / "small", "--scheme", "w4a16", "--group", "32", "--calibrate", story
    )
    stored = load_file(tmp_path / "small" / "model.safetensors")
    experts = [name for name in stored if ".experts." in name and name.endswith("packed")]
    assert len(experts) == 2 * 5 * 3 and report["matrices"] == 2 * (4 + 5 * 3)
    ignored = json.loads((tmp_path / "small/config.json").read_text())["quantization_config"]["ignore"]
    assert ignored == ["lm_head", *(f"model.layers.{i}.block_sparse_moe.gate" for i in range(2))]
    for name in ignored:
        assert f"{name}.weight" in stored


def test_what_is_ignored_stays(model: Path, story: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "small"
    words = ["--ignore", "down_proj", "--ignore", "model.layers.1.self_attn.o_proj", "--evaluate", story]
    run(capsys, model, out, "--scheme", "fp8", *words)
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    plain = [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.down_proj",
    ]
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    assert sorted(described["ignore"]) == sorted(["lm_head", *plain])
    for name in plain:
        assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
    quantised = "model.layers.0.self_attn.o_proj"
    assert after[f"{quantised}.weight"].dtype == torch.float8_e4m3fn
    restored = after[f"{quantised}.weight"].float() * after[f"{quantised}.weight_scale"].float()
    assert torch.allclose(restored, before[f"{quantised}.weight"].float(), rtol=0.07, atol=0.02)


@pytest.mark.parametrize(
    "scheme", [("w8a16",), ("w4a16", "--group", "32", "--asymmetric"), ("fp8",)], ids=str
)
def test_transformers_loads_it(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], scheme: tuple[str, ...]
) -> None:
    """Its weights are our numbers, each rounded to bfloat16 once."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    out = model.parent / "small"
    run(capsys, model, out, "--scheme", *scheme, "--calibrate", story)
    config = transformers.CompressedTensorsConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, quantization_config=config)
    decoder = load_model(out, ENGINE).decoder
    for ours, layer in zip(decoder.weights().layers, theirs.model.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        gate_up = [mlp.gate_proj.weight, mlp.up_proj.weight]
        for found, matrix in (
            (qkv, ours.qkv),
            ([attention.o_proj.weight], ours.o),
            (gate_up, ours.gate_up),
            ([mlp.down_proj.weight], ours.down),
        ):
            assert isinstance(matrix, Matrix) and isinstance(matrix.weight, QuantizedMatrix)
            assert torch.equal(torch.cat(found), matrix.weight.dequantize().bfloat16())
    ids = torch.arange(2, 34)
    window = text.Windows(ids.view(1, -1), "")
    caches = [window.cache(decoder.config) for _ in theirs.model.layers]
    keys, values = [cache.k for cache in caches], [cache.v for cache in caches]
    logits = decoder.logits(decoder.forward(ids, keys, values, window.metadata()))
    distance = (theirs.float()(ids.view(1, -1)).logits[0] - logits).norm() / logits.norm()
    assert distance < 0.05


# ---- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("--scheme", "w4"), 2, "no scheme 'w4'"),
        ((), 2, "--scheme"),
        (("--scheme", "w4a16", "--group", "16"), 2, "no group '16'"),
        (("--scheme", "w4a16"), 2, "self_attn.q_proj has 32 inputs"),  # groups of 64
        (("--scheme", "w8a16", "--asymmetric"), 2, "symmetric"),
        (("--scheme", "w8a16", "--ignore", "up"), 2, "no quantised matrix is called 'up'"),
        (("--scheme", "w8a16", "--ignore", "up_proj"), 2, "gate_proj, up_proj are one matrix"),
        (("--scheme", "w8a16", "--calibrate", "nowhere.txt"), 3, "No such file"),
        (("--scheme", "w8a16", "--calibrate", "short.txt"), 2, "too short"),
        (("--scheme", "w8a16", "--evaluate", "short.txt"), 2, "too short"),
        (("--scheme", "w8a16", "--calibrate", "latin.txt"), 2, "not UTF-8"),
        (("--scheme", "w8a16", "--calibrate", "empty.txt"), 2, "empty.txt is empty"),
    ],
    ids=str,
)
def test_what_is_refused(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    named: str,
) -> None:
    monkeypatch.chdir(model.parent)
    Path("short.txt").write_text("the cat sat")
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("na\u00efve".encode("latin-1"))
    found, line = refused(capsys, model, "small", *words)
    assert found == code and named in line
    assert sorted(path.name for path in model.parent.iterdir()) == [
        "empty.txt",
        "latin.txt",
        "model",
        "short.txt",
    ]


def test_a_folder_that_exists_is_kept(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(capsys, model, model, "--scheme", "w8a16")
    assert code == 2 and "exists" in line and (model / "model.safetensors").exists()


def test_where_no_folder_can_appear(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the model is loaded: the work would be lost at the end."""
    (model.parent / "empty").mkdir()
    (model.parent / "link").symlink_to(model.parent / "empty")
    (model.parent / "file").touch()
    monkeypatch.setattr(folders, "load_model", lambda *_, **__: 1 / 0)
    for out, code, named in (("link", 2, "exists"), ("file/small", 3, "Not a directory")):
        found, line = refused(capsys, model, model.parent / out, "--scheme", "w8a16")
        assert found == code and named in line, line


def damaged(model: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    weights = load_file(model / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, model / "model.safetensors")


@pytest.mark.parametrize("from_a_file", [True, False])
def test_logits_that_are_no_numbers(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], from_a_file: bool
) -> None:
    damaged(model, "model.norm.weight", lambda norm: torch.full_like(norm, float("nan")))
    words = ["--evaluate", story] if from_a_file else []
    code, line = refused(capsys, model, model.parent / "small", "--scheme", "w8a16", *words)
    assert code == 5 and "logits are NaN or infinite" in line and not (model.parent / "small").exists()


def test_a_perplexity_beyond_all_numbers(model: Path, story: str, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(model, "lm_head.weight", lambda head: head * 1e4)
    report = run(capsys, model, model.parent / "small", "--scheme", "w8a16", "--evaluate", story)
    assert report["perplexity"] is None and report["original_perplexity"] is None


def test_a_beginning_that_the_model_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = SMALL | {"bos_token_id": 5000}
    source = tiny.make_folder(tmp_path / "model", cfg, tensors=rounded(cfg))
    (source / "tokenizer.json").unlink()
    assert run(capsys, source, tmp_path / "small", "--scheme", "w8a16")["perplexity"] > 1


def test_a_context_of_one_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = SMALL | {"max_position_embeddings": 1}
    source = tiny.make_folder(tmp_path / "model", cfg, tensors=rounded(cfg))
    code, line = refused(capsys, source, tmp_path / "small", "--scheme", "w8a16")
    assert code == 2 and "predicts nothing" in line


def test_what_the_cache_says_of_the_source_is_not_copied(
    model: Path, story: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "source.json").write_text("{}")
    run(capsys, model, model.parent / "small", "--scheme", "w8a16", "--evaluate", story)
    assert not (model.parent / "small" / "source.json").exists()
    assert (model.parent / "small" / "tokenizer.json").exists()


def test_a_quantised_model(model: Path, story: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, model, model.parent / "a", "--scheme", "w8a16", "--evaluate", story)
    code, line = refused(capsys, model.parent / "a", model.parent / "b", "--scheme", "w8a16")
    assert code == 4 and "quantised already" in line and not (model.parent / "b").exists()


def test_matrices_that_are_stored_transposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = families.make_folder(tmp_path / "gpt2", "gpt2")
    code, line = refused(capsys, source, tmp_path / "small", "--scheme", "w8a16")
    assert code == 4 and "gpt2" in line and "transposed" in line


@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_that_are_no_numbers(
    model: Path, story: str, capsys: pytest.CaptureFixture[str], calibrated: bool
) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(weights, model / "model.safetensors")
    words = ["--calibrate" if calibrated else "--evaluate", story]
    code, line = refused(capsys, model, model.parent / "small", "--scheme", "w8a16", *words)
    assert code == 5 and "model.layers.1.mlp.down_proj cannot be quantised" in line
    assert sorted(path.name for path in model.parent.iterdir()) == ["model", "story.txt"]


@pytest.mark.parametrize("call", [10, 15])  # of 14: in the second layer, and the control
def test_an_interrupted_command_leaves_nothing(
    model: Path, story: str, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls: list[str] = []

    def interrupted(weights: Tensor, grid: Grid, name: str) -> Rounded:
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(weights, grid, name)

    original = layers.round_to_nearest
    monkeypatch.setattr(layers, "round_to_nearest", interrupted)
    code = main(
        ["quantize", str(model), str(model.parent / "small"), "--scheme", "w8a16", "--evaluate", story]
    )
    left = sorted(path.name for path in model.parent.iterdir())
    assert (code, left) == (
        (130, ["model", "story.txt"]) if call == 10 else (0, ["model", "small", "story.txt"])
    )
