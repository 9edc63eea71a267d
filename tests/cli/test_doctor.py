"""The report must be correct on a good machine, and must not raise on a broken one."""

import argparse
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from minillm.cli import doctor
from minillm.cli.doctor import machine, parts, python, quantization, toolchains
from minillm.cli.doctor.check import Check
from minillm.toolchain import cache, cuda_toolkit, library, simt
from minillm.toolchain.cpu import ISAS, cpu_library
from minillm.toolchain.sources import csrc


def fake_torch(version: str, cuda: str | None = None) -> ModuleType:
    torch = ModuleType("torch")
    torch.__version__ = version
    torch.version = SimpleNamespace(cuda=cuda, hip=None)
    torch.cuda = SimpleNamespace(
        is_available=lambda: cuda is not None,
        device_count=lambda: 2,
        get_device_properties=lambda i: SimpleNamespace(
            name=f"GPU{i}", major=9, minor=0, total_memory=80 << 30
        ),
    )
    return torch


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    return parser.parse_args(["doctor", *argv])


def test_this_machine_is_healthy_and_every_check_is_filled_in():
    checks = doctor.collect()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"python", "torch", "c++ compiler", "nvcc", "cuda kernels", "simulator", "gpu", "backend"} <= set(
        names
    )
    assert all(check.value for check in checks)
    assert [check for check in checks if check.status == "problem"] == []
    assert all(check.advice for check in checks if check.status in ("missing", "problem"))


def test_json_is_one_object_on_stdout(capsys):
    args = parse("--json")
    assert args.func(args) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert all(set(check) == {"name", "status", "value", "advice"} for check in report["checks"])


def test_only_a_problem_sets_the_exit_code(capsys, monkeypatch):
    for status, code in [("ok", 0), ("info", 0), ("missing", 0), ("problem", 1)]:
        check = Check("it", status, "[red]/path[/]", "fix")
        monkeypatch.setattr(doctor, "collect", lambda check=check: [check])
        assert doctor.run(parse()) == code
        out = capsys.readouterr().out
        assert "[red]/path[/]" in out  # a value is text, never markup
        assert "fix" in out


def test_python_too_old():
    assert python.check_python((3, 10, 14)).status == "problem"
    assert python.check_python((3, 11, 0)).status == "ok"


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("2.10.0", True),
        ("2.10", True),
        ("2.13.0+cpu", True),
        ("3.0.0", True),
        ("2.11.0a0+git123", True),
        ("2.10.0.post1", True),
        ("2.10.0a0+b4e4ee8", False),
        ("2.9.1+cu128", False),
        ("1.13", False),
        ("unknown", False),
    ],
)
def test_torch_versions(version, supported):
    assert python.is_torch_supported(version) is supported
    assert python.check_torch(fake_torch(version), "").status == ("ok" if supported else "problem")


def test_torch_build_and_gpus_are_named():
    torch = fake_torch("2.13.0+cu130", cuda="13.0")
    assert "CUDA 13.0" in python.check_torch(torch, "").value
    assert machine.check_gpu(torch).value == "GPU0 (sm_90, 80 GiB); GPU1 (sm_90, 80 GiB)"
    assert machine.check_gpu(fake_torch("2.13.0+cpu")).status == "info"


def test_a_torch_that_does_not_import_is_a_line_in_the_report(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` raise
    assert doctor.run(parse("--json")) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["torch"]["status"] == "problem"
    assert "cannot be imported" in checks["torch"]["value"]


def test_cpu_features_of_x86_and_arm():
    assert machine.cpu_features("processor: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n") == [
        "avx2",
        "avx512f",
        "avx512_bf16",
    ]
    assert machine.cpu_features("Features\t: fp asimd bf16\n") == ["asimd", "bf16"]
    assert machine.cpu_features("") == []


def make_toolkit(folder: Path, headers: bool = True) -> Path:
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.48'\n")
    nvcc.chmod(0o755)
    if headers:
        (folder / "include").mkdir()
        (folder / "include" / "cuda_runtime.h").touch()
    return folder


def test_an_nvcc_without_headers_is_ignored(tmp_path, monkeypatch):
    wrapper = make_toolkit(tmp_path / "wrapper", headers=False)
    toolkit = make_toolkit(tmp_path / "cuda")
    monkeypatch.setenv("PATH", str(wrapper / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert cuda_toolkit.find_cuda() == toolkit
    assert "release 13.0" in toolchains.check_nvcc().value
    monkeypatch.setenv("PATH", str(toolkit / "bin"))
    monkeypatch.delenv("CUDA_HOME")
    assert cuda_toolkit.find_cuda() == toolkit


def use_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a compiler that prints its version and compiles nothing."""
    compiler = folder / "a compiler"
    compiler.write_text("#!/bin/sh\necho 1.0\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


def hide_compilers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)


def install(path: Path) -> None:
    """Install an empty file at the path of the compiled library."""
    built = path.with_name("built")
    built.touch()
    cache.install(built, path)


def test_no_compiler_is_missing_and_not_a_problem(tmp_path, monkeypatch):
    hide_compilers(tmp_path, monkeypatch)
    assert toolchains.check_compiler().status == "missing"


def test_the_cuda_kernels_line_names_the_architectures(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    use_compiler(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = toolchains.check_cuda_kernels(torch)
    assert said.status == "info"
    assert f"into {tmp_path / 'cache'}, for sm_75 sm_80 sm_90" in said.value
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    said = toolchains.check_cuda_kernels(torch)
    assert (said.status, "for sm_90a;" in said.value) == ("ok", True)
    monkeypatch.setattr(cuda_toolkit, "find_cuda", lambda: None)
    assert toolchains.check_cuda_kernels(torch).status == "missing"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert toolchains.check_cuda_kernels(torch).status == "info"
    assert toolchains.check_cuda_kernels(None).advice == "repair torch first"


def test_the_simulator_line_says_whether_it_is_built_and_its_flavours(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    use_compiler(tmp_path, monkeypatch)
    monkeypatch.setattr(toolchains.sanitizer, "preload", lambda: "libasan.so")
    said = toolchains.check_simulator(torch)
    assert said.status == "ok"
    assert said.value.startswith(f"compiled on first use, into {tmp_path};")
    assert said.value.endswith("flavours fast, check, asan (scripts/sanitize.sh)")
    monkeypatch.setattr(toolchains.sanitizer, "preload", lambda: "")
    for described in (simt.machine_library(), simt.ops_library()):
        assert toolchains.check_simulator(torch).value.startswith("compiled on first use")
        install(described.path())
    said = toolchains.check_simulator(torch)
    assert said.value.startswith("compiled: ") and "no asan" in said.value
    hide_compilers(tmp_path, monkeypatch)
    assert toolchains.check_simulator(torch).status == "missing"
    assert toolchains.check_simulator(None).advice == "repair torch first"


def test_the_backend_line_names_the_backend_of_auto(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(library, "PREBUILT", tmp_path / "kernels")
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    use_compiler(tmp_path, monkeypatch)
    said = parts.check_backend(torch)
    assert said.status == "ok" and "first use" in said.value and str(tmp_path / "cache") in said.value
    (tmp_path / "cache").mkdir()
    install(cpu_library().path())
    assert parts.check_backend(torch).value.startswith("native (CPU kernels compiled: ")
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "other"))
    hide_compilers(tmp_path, monkeypatch)
    said = parts.check_backend(torch)
    assert (said.status, said.value) == ("missing", "reference (PyTorch): there is no C++ compiler")
    assert said.advice
    assert parts.check_backend(None).advice == "repair torch first"
    assert "GPU" in parts.check_backend(fake_torch("2.13.0", "13.0")).value


def test_shipped_model_is_found_by_its_config(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "package_dir", lambda: tmp_path)
    assert parts.check_model("storyteller-6m").status == "missing"
    (tmp_path / "zoo" / "storyteller-6m").mkdir(parents=True)
    (tmp_path / "zoo" / "storyteller-6m" / "config.json").touch()
    assert parts.check_model("storyteller-6m").status == "ok"


AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | set(
    "avx512f avx512bw avx512vl avx512dq avx512_bf16 avx512vbmi avx512_vnni".split()
)  # Linux's names


def test_the_kernels_of_quantised_weights_follow_the_flags(monkeypatch):
    monkeypatch.delenv("MINILLM_CPU_PATH", raising=False)
    monkeypatch.setattr(quantization.platform, "machine", lambda: "x86_64")
    said = quantization.check_code_kernels(AVX512)
    assert said.value.startswith("avx512_bf16: bf16 pairs") and "lacks" not in said.value
    without = quantization.check_code_kernels(AVX512 - {"avx512vbmi"})
    assert without.value.startswith("avx2: ") and without.value.endswith("avx512_bf16 lacks avx512vbmi")
    said = quantization.check_code_kernels({"avx2"})  # without FMA and F16C
    assert (said.status, said.value.split(":")[0]) == ("info", "generic")
    monkeypatch.setenv("MINILLM_CPU_PATH", "generic")
    assert quantization.check_code_kernels(AVX512).value.startswith("generic: portable code")
    monkeypatch.delenv("MINILLM_CPU_PATH")
    monkeypatch.setattr(quantization.platform, "machine", lambda: "aarch64")
    assert "lacks" not in quantization.check_code_kernels({"asimd"}).value


def test_the_paths_have_the_names_of_the_library():
    names = re.findall(r'#define NAME "(\w+)"', (csrc() / "cpu" / "isa.cpp").read_text())
    assert names == list(ISAS) == list(quantization._HOW)


def test_the_path_is_the_one_that_the_library_takes():
    from minillm.ops.registered import current_isa, load_native

    load_native()
    assert quantization.check_code_kernels().value.split(":")[0] == current_isa()


def test_packed_bytes_of_the_model_that_ships(tmp_path, monkeypatch):
    import torch

    from minillm import LLM
    from minillm.model import locate

    said = quantization.check_packed_bytes(torch)
    first, *others = (
        said.value.splitlines()[0].removeprefix("storyteller-6m ").replace("; ", ", ").split(", ")
    )
    sizes = dict(text.split(" ", 1) for text in others)
    assert list(sizes) == list(quantization.SCHEMES)
    decoder = LLM(quantization="int4").engine.model.decoder
    assert sizes["int4"] == quantization.format_bytes(decoder.step_bytes()) != first
    assert "fit the free memory" in said.value
    monkeypatch.setattr(locate, "ZOO", tmp_path)
    assert quantization.check_packed_bytes(torch).status == "missing"
    assert quantization.check_packed_bytes(None).advice == "repair torch first"
