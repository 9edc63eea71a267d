"""The bench: consistent figures, a row for every op, and quantised beside plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch

from minillm.bench import kernels, kv_attention, machine, serving
from minillm.bench.allocation import compare, read_trace
from minillm.bench.serving import _padded
from minillm.cli import bench as bench_cli
from minillm.cli.bench_serving import print_serving
from minillm.cli.main import main
from minillm.errors import UsageError
from minillm.model.families import parse_config
from minillm.ops import kv_codes
from minillm.ops.contract import LayerCache, Ops
from minillm.ops.reference import ReferenceOps


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BANDWIDTH_BYTES", 8 << 20)
    monkeypatch.setattr(machine, "_PRODUCT", 64)
    monkeypatch.setattr(kernels, "_COLD_BYTES", 1 << 16)
    monkeypatch.setattr(kernels, "_SECONDS", 1e-4)


def bench(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["bench", *args, "--runs", "2", "--json", "--model", str(folder)]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_kernels_against_the_roofline(capsys: Any, folder: Path, backend: str) -> None:
    report, _ = bench(capsys, folder, "kernels", "--backend", backend)
    bandwidth, peak = report["read_bandwidth"]["median"], report["peak_flops"]["median"]
    for row in report["rows"]:
        memory, arithmetic = row["bytes"] / bandwidth, row["flops"] / peak
        assert row["bound"] == ("memory" if memory >= arithmetic else "arithmetic")
        assert row["share_of_roofline"] == pytest.approx(max(memory, arithmetic) / row["seconds"])
        assert row["reference_seconds"] > 0
    assert main(["bench", "kernels", "--runs", "1", "--model", str(folder)]) == 0
    assert "GFLOP/s" in capsys.readouterr().out


@pytest.mark.parametrize(("backend", "kv_dtype"), [("auto", "int8"), ("reference", "fp8")])
def test_attention_over_keys_and_values_in_8_bits(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str, kv_dtype: str
) -> None:
    monkeypatch.setattr(kv_attention, "KEYS", 40)
    report, _ = bench(capsys, folder, "kernels", "--backend", backend, "--kv-dtype", kv_dtype)
    kv, head_dim = report["kv"], 8
    assert kv["kv_dtype"] == kv_dtype and kv["ratio"]["low"] <= kv["ratio"]["high"]
    assert kv["bytes"][0] / kv["bytes"][1] == 4 * head_dim / (head_dim + 4)
    printed = {"dtype": "float32", "kernels": "", "rows": [], "kv": kv, "machine": report["machine"]}
    bench_cli._print_kernels(printed | {name: report[name] for name in ("read_bandwidth", "peak_flops")})
    assert f"µs in {kv_dtype}" in capsys.readouterr().out


def test_attention_in_8_bits_computes_the_same() -> None:
    """What is timed is attention over the numbers that were written."""
    config = parse_config(tiny.config())
    ops, meta = ReferenceOps(), kv_attention._meta(40)
    cache = kv_attention.coded_cache(config, ops, "int8", 40)
    plain = LayerCache(ops.view_keys(cache.k).dequantize(), kv_codes.rows(cache.v).dequantize())
    q = torch.randn(kv_attention.SEQUENCES, config.num_attention_heads, config.head_dim)
    found, exact = (ops.paged_attention(q, *each, meta, 0.3) for each in (cache, plain))
    assert torch.allclose(found, exact, atol=1e-5) and exact.std() > 0


def test_every_op_of_the_contract_is_measured(capsys: Any, folder: Path, tmp_path: Path) -> None:
    """Each model's bench has the ops that the model uses."""
    others = [families.make_folder(tmp_path, family) for family in ("gpt2", "gemma2", "gpt_oss")]
    reports = [bench(capsys, model, "kernels")[0] for model in (*others, folder)]
    measured = {row["op"].split()[0] for report in reports for row in report["rows"]}
    assert "rms_norm" not in {row["op"] for row in reports[0]["rows"]}
    report, contract = reports[-1], {name for name in vars(Ops) if not name.startswith("_")}
    loading = {"prepare_weight", "unpack_weight", "begin_quantized", "put_quantized"}
    facts = {"kernel_set", "kv_dtypes", "packs", "plain_only", "view_keys"}
    assert contract - measured == {"token_logprobs"} | facts | loading
    linear = next(row for row in report["rows"] if row["op"] == "linear qkv")
    assert linear["size"] == "1x32x64"
    assert linear["flops"] == 2 * 32 * 64
    assert linear["bytes"] == 4 * (32 * 64 + 32 + 64)


# ---- serving --------------------------------------------------------------------------------------


def test_allocation_by_hand() -> None:
    """Lengths 3, 5 and 8 in blocks of 4, memory of 16 slots."""
    contiguous, paged = compare([(1, 2), (2, 3), (4, 4)], block_size=4, slots=16)
    assert contiguous.waste == 1 - 16 / 24 and contiguous.held_at_once == 2
    assert paged.waste == 1 - 16 / 20 and paged.held_at_once == 2  # 4 + 8, then 8 + 8


def test_a_file_that_is_not_a_trace(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    for name in ("x.csv", "missing.csv"):
        with pytest.raises(UsageError, match=f"{name} is not a trace"):
            read_trace(tmp_path / name)


def test_what_static_batching_computes() -> None:
    assert _padded([(3, 9), (7, 2)]) == [(7, 9), (7, 9)]


def test_every_part_of_the_serving_bench_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part runs and its figures are consistent. Their size is not tested: the machine is busy."""
    sizes = {"REQUESTS": 6, "BATCH": 3, "STREAMS": 2, "CHUNK": 8, "LONG_PROMPT": 3}
    for name, value in sizes.items():
        monkeypatch.setattr(serving, name, value)
    monkeypatch.setattr(serving, "ragged_work", lambda: [(4 + i, 3 + 5 * i) for i in range(6)])
    report = serving.run_serving(lambda **changes: tiny.load(folder, **changes), 1, None)
    assert set(report) == {"batching", "gaps", "overhead", "nothing_to_share"}
    assert 0 < report["overhead"]["share"] < 1
    assert report["batching"]["ratio_low"] <= report["batching"]["ratio"]
    print_serving(report)


def test_quantised_in_turns_with_the_model_as_it_is(capsys):
    options = ["--quantization", "int4", "--runs", "1", "--tokens", "2", "--prompt-len", "8", "--batch", "1"]
    assert main(["bench", "storyteller-1m", "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["quantization"] == "int4" and report["plain"]["dtype"] == "bfloat16"
    assert report["weights"]["bytes_per_step"] < 0.6 * report["plain"]["bytes_per_step"]
    assert [row["what"] for row in report["plain"]["rows"]] == ["prefill 8", "decode, batch 1"]
    assert all(row["ratio"]["median"] > 0 for row in report["plain"]["rows"])


@pytest.mark.parametrize(
    ("what", "option"),
    [
        (["kernels"], "--quantization"),
        (["kernels", "--backend", "simt"], "--kv-dtype"),
        (["cache"], "--quantization"),
        (["cache"], "--kv-dtype"),
    ],
)
def test_what_loads_no_model_takes_no_form_of_its_numbers(what, option, capsys):
    assert main(["bench", *what, option, "int8"]) == 2
    said = capsys.readouterr().err
    assert "loads no model" in said and f"leave {option} out" in said


@pytest.mark.parametrize("what", ["kernels", "serving", "speculation", "growth", "quality", "cache"])
def test_only_the_engine_has_a_peer(what, capsys):
    assert main(["bench", what, "--peer", "transformers"]) == 2
    assert f"bench {what} has no peer" in capsys.readouterr().err
