"""scripts/gpu_check.sh, tested without a GPU, since it rarely runs on one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minillm.toolchain.compiler import find_compiler
from minillm.toolchain.sources import find_sources

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = REPO / "scripts"
PYTHON = sys.executable


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / "gpu" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


check = load("gpu_check")


def run(out: Path, steps: list[Any], budget: float = 60.0) -> tuple[bool, dict[str, Any]]:
    passed = check.Check(out, budget).run(steps)
    report = json.loads((out / "check.json").read_text())
    assert report["passed"] == passed
    return passed, report


def step(name: str, code: str, seconds: int = 30, **options: Any) -> Any:
    return check.Step(name, f"{name}.log", seconds, [PYTHON, "-c", code], **options)


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {result["name"]: result["status"] for result in report["steps"]}


# ---- the plan ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("simulate", [False, True])
def test_the_plan_names_what_there_is(tmp_path, simulate):
    steps = check.plan(tmp_path, PYTHON, simulate)
    names = [s.name for s in steps]
    assert len(set(names)) == len(names)
    assert {"gpu", "build", "tests", "bench-prefill", "bench-decode", "bench-model"} <= set(names)
    assert check.BUDGET + 20 <= 540  # nine minutes, including the time to end the last step
    sections = load_bench().SECTIONS
    assert {n.removeprefix("bench-") for n in names if n.startswith("bench-")} == set(sections)
    for i, s in enumerate(steps):
        assert set(s.needs) <= set(names[:i]), "a step needs what comes later"
        assert s.log in check.FILES
        for word in s.command:
            if s.command[0] == PYTHON and s.command[s.command.index(word) - 1] == "-c":
                compile(word, s.name, "exec")
            if word.endswith(".py"):
                assert (REPO / word).is_file(), word
    # The files must be easy to copy from a rented machine: at most eight, plain names, no folders.
    assert len(check.FILES) <= 8
    assert all(re.fullmatch(r"[\w.-]+", name) for name in check.FILES)


def test_the_tests_of_the_plan_need_no_simulator_and_no_package_that_a_gpu_machine_may_lack():
    """Collecting other test files would import the notebooks' packages and compile the simulator."""
    (tests,) = (s for s in check.plan(Path("out"), PYTHON, False) if s.name == "tests")
    files = [word for word in tests.command if word.startswith("tests/")]
    names = [f"test_cuda_gpu{part}" for part in ("", "_families", "_pass", "_quantized")]
    assert files == [f"tests/cuda/{name}.py" for name in names]
    paths = "sys.path[:0] = ['tests/cuda', 'tests/helpers']"
    code = f"import sys; {paths}; import {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([PYTHON, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "minillm.ops.simt" not in done.stdout.split()
    assert not loaded & {"jupytext", "nbclient", "matplotlib", "hypothesis", "scipy", "transformers"}


def test_the_steps_that_must_be_done_fit_even_if_each_takes_its_time(tmp_path):
    before = {"gpu", "packages", "nvidia-smi", "doctor"}
    most = {s.name: s.seconds for s in check.plan(tmp_path, PYTHON, False) if s.name not in before}
    assert most["build"] + most["tests"] + most["bench-decode"] + most["bench-prefill"] < check.BUDGET


# ---- what happens when things go wrong ----------------------------------------------------------------


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path):
    steps = [
        step("fails", "print('the reason'); raise SystemExit(3)"),
        step("needs", "print('never')", needs=("fails",)),
        step("absent", "print('never')", skip="there is no such tool"),
        step("may", "raise SystemExit(1)", optional=True),
        step("works", "import minillm; print('done')"),
    ]
    passed, report = run(tmp_path, steps)
    assert not passed
    expected = {"fails": "failed", "needs": "skipped", "absent": "skipped", "may": "failed", "works": "ok"}
    assert statuses(report) == expected
    assert report["steps"][0]["code"] == 3 and "the reason" in report["steps"][0]["tail"]
    assert "the reason" in (tmp_path / "fails.log").read_text()
    assert report["steps"][1]["why"] == "fails was not ok"


def test_optional_steps_and_skipped_ones_are_no_failure(tmp_path):
    passed, _ = run(tmp_path, [step("may", "raise SystemExit(1)", optional=True), step("no", "", skip="no")])
    assert passed


def test_a_step_that_hangs_is_ended_with_all_it_started(tmp_path):
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(subprocess.Popen(['sleep', '100']).pid, flush=True); time.sleep(100)"
    )
    began = time.monotonic()
    passed, report = run(tmp_path, [step("hangs", code, seconds=2), step("next", "")])
    assert not passed and time.monotonic() - began < 30
    assert statuses(report) == {"hangs": "timed out", "next": "ok"}
    child = int(re.search(r"^\d+$", (tmp_path / "hangs.log").read_text(), re.MULTILINE)[0])
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]


def test_no_step_runs_past_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "LEAST", 1)
    slow = step("slow", "import time; time.sleep(100)", seconds=60)
    passed, report = run(tmp_path, [slow, step("late", "")], budget=2)
    assert not passed
    assert statuses(report) == {"slow": "timed out", "late": "skipped"}
    assert report["seconds"] < 20


def test_the_report_is_there_while_a_step_runs(tmp_path):
    """If the whole script is killed, the report of the finished steps exists."""
    code = (
        f"import json; r = json.load(open({str(tmp_path / 'check.json')!r}));"
        "assert [s['name'] for s in r['steps']] == ['first'];"
        "assert r['not reached'] == ['second'] and not r['passed']"
    )
    passed, report = run(tmp_path, [step("first", ""), step("second", code)])
    assert passed, report


def test_a_program_that_does_not_exist_is_a_failure_with_a_word(tmp_path):
    missing = check.Step("missing", "missing.log", 5, ["/nowhere/at/all"])
    passed, report = run(tmp_path, [missing])
    assert not passed
    assert "No such file" in " ".join(report["steps"][0]["tail"])


def test_without_a_gpu_the_script_says_so_and_writes_its_report(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        ["bash", str(SCRIPTS / "gpu_check.sh"), str(tmp_path / "out")],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": PYTHON},
        capture_output=True,
        text=True,
        timeout=120,
    )
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    assert done.returncode == 1
    found = statuses(report)
    assert found["gpu"] == "failed" and found["build"] == found["tests"] == "skipped"
    assert found["packages"] == found["doctor"] == "ok"
    assert set(os.listdir(tmp_path / "out")) <= set(check.FILES)


# ---- the benchmarks -----------------------------------------------------------------------------------


def load_bench() -> ModuleType:
    for name in ("gpu_timing", "gpu_inputs", "gpu_model"):
        load(name)
    return load("gpu_bench")


needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="the simulator needs a compiler")


@needs_compiler
def test_one_of_each_is_one_of_each():
    """--one-of-each runs every kernel, for compute-sanitizer, and the simulator's checks find no error."""
    from minillm.ops.simt import flavour, profile

    bench = load_bench()
    with flavour("check"), profile() as p:
        assert bench.main(["--simulate", "--one-of-each"]) == 0
    sources = "".join(path.read_text() for path in find_sources("cuda", ".cu"))
    kernels = re.findall(r"__global__[^;{]*?(\w+)\(const __grid_constant__", sources)
    assert kernels and set(p.kernels) == {name.removesuffix("_kernel") for name in kernels}


@needs_compiler
def test_a_row_that_fails_leaves_the_others_and_the_file(tmp_path, monkeypatch):
    module = load_bench()
    bench = module.make(True, tmp_path / "bench.json")
    monkeypatch.setattr(bench.ops, "act_and_mul", lambda x: 1 / 0)
    module.rows(bench)
    module.matrices(module.make(True, tmp_path / "bench.json"))  # adds to the same file
    found = json.loads((tmp_path / "bench.json").read_text())["rows"]
    errors = [(row["what"].split()[0], row["by"]) for row in found if "error" in row]
    assert errors == [("act_and_mul", "ours")]
    assert bench.report.failed({"ours"}) and not bench.report.failed({"torch"})
    assert {"rms_norm", "sample", "linear", "copy"} <= {row["what"].split()[0] for row in found}


@needs_compiler
def test_attention_rows_are_right_beside_their_peers(tmp_path):
    module = load_bench()
    bench = module.make(True, tmp_path / "bench.json")
    module.prefill(bench)
    module.decode(bench)
    found = json.loads((tmp_path / "bench.json").read_text())["rows"]
    mine = [row for row in found if row["by"] in ("v1", "v2", "v3", "d1", "d2", "d3")]
    assert len(mine) == 6
    assert all(row["rel_error"] < 6e-3 and row["median_s"] > 0 for row in mine)
    assert any(row["by"].startswith("sdpa") and "error" not in row for row in found)


@pytest.mark.slow
@needs_compiler
def test_all_of_it_on_the_simulator(tmp_path):
    command = ["bash", str(SCRIPTS / "gpu_check.sh"), str(tmp_path), "--simulate"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": PYTHON}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["passed"]
    needs_a_chip = {"nvidia-smi", "tensor-cores"}
    assert {name for name, status in statuses(report).items() if status != "ok"} <= needs_a_chip
