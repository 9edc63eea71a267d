"""Everything a machine with a GPU should do, in a fixed time, with an answer whatever goes wrong.

    gpu_check.py OUT_DIR              on a GPU
    gpu_check.py OUT_DIR --simulate   the same steps on the simulator: proves the script, not the kernels

    OUT_DIR/check.json      every step: ok, failed, timed out, skipped and why, seconds; whole after each step
    OUT_DIR/machine.log     minillm doctor, nvidia-smi, nvcc, the packages
    OUT_DIR/build.log       nvcc over csrc/cuda for the GPU that is there, and the torch binding
    OUT_DIR/tests.log       every test marked gpu: kernels on CUDA tensors against float64, models end to end
    OUT_DIR/tensor_cores.json   what a tensor core computes, to the bit (tensor_cores.cu)
    OUT_DIR/bench.json      kernels beside torch's SDPA backends and cuBLAS, a model end to end (bench.log)
    OUT_DIR/sanitizer.log   each kernel once under compute-sanitizer's tools, where it works

Each step is a process of its own, so a kernel that breaks the CUDA context breaks its step and no other.
A step has a limit of its own and never more than is left of all; the sanitizer comes last, since it is the
one whose time nobody knows. The exit code is 1 if a step failed. Clocks and settings are left as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

REPO = Path(__file__).resolve().parents[2]
BUDGET = 520  # seconds for everything; a lent machine gives a command ten minutes
LEAST = 8  # a step with less time than this is not started
FILES = [f"{name}.log" for name in ("machine", "build", "tests", "bench", "sanitizer")]
FILES += ["bench.json", "tensor_cores.json", "check.json"]
GPU_TESTS = (
    "tests/cuda/test_cuda_gpu.py",
    "tests/cuda/test_cuda_gpu_families.py",
    "tests/cuda/test_cuda_gpu_pass.py",
    "tests/cuda/test_cuda_gpu_quantized.py",
)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
HAS_GPU = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
FACTS = """
import importlib.metadata as m, platform, sys
print(sys.version, platform.platform())
for name in ("torch", "triton", "pytest", "pytest-xdist", "tokenizers", "safetensors", "transformers"):
    try: print(name, m.version(name))
    except m.PackageNotFoundError: print(name, "is not there")
"""
ANY_KERNEL = "import torch; assert torch.ones(8, device='cuda').sum().item() == 8"


@dataclass(frozen=True)
class Step:
    """One process: at most `seconds` long, its output at the end of `log`."""

    name: str
    log: str
    seconds: int
    command: list[str]
    needs: tuple[str, ...] = ()  # steps that must have been ok
    skip: str = ""  # why it cannot be done here
    optional: bool = False  # a failure means that this machine cannot do it, and is none of ours
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """What became of a step."""

    name: str
    status: str  # ok, failed, timed out, skipped
    seconds: float = 0.0
    code: int | None = None
    why: str = ""
    tail: list[str] = field(default_factory=list)


def plan(out: Path, python: str, simulate: bool) -> list[Step]:
    """The steps, in order."""
    bench = [python, str(REPO / "scripts" / "gpu" / "gpu_bench.py"), *(["--simulate"] if simulate else [])]
    load = "minillm.ops.simt.ops import load_ops" if simulate else "minillm.ops.cuda import load_library"
    workers = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", *workers, *GPU_TESTS]
    doctor = [python, "-m", "minillm.cli.main", "doctor", "--json"]
    on_cpu = "from minillm.model.loader import make_ops; make_ops('auto', 'cpu')"
    standin = {"MINILLM_STANDIN": "simt"} if simulate else {}
    steps = [
        Step("gpu", "machine.log", 60, [python, "-c", "" if simulate else HAS_GPU]),
        Step("packages", "machine.log", 20, [python, "-c", FACTS], optional=True),
        Step("nvidia-smi", "machine.log", 20, ["nvidia-smi"], skip=_absent("nvidia-smi"), optional=True),
        Step("doctor", "machine.log", 60, doctor, optional=True),
        Step("build", "build.log", 180, [python, "-c", f"from {load} as load; print(load())"], ("gpu",)),
        Step("build-cpu", "build.log", 90, [python, "-c", on_cpu], optional=True),  # the tests' other side
        Step("tests", "tests.log", 150, tests, ("build",), env=standin),
        _tensor_cores(out, simulate),
    ]
    sections = {"decode": 60, "prefill": 90, "matrices": 60, "rows": 60, "model": 90, "step": 120}
    for section, seconds in sections.items():
        command = [*bench, section, "--out", str(out / "bench.json")]
        steps.append(Step(f"bench-{section}", "bench.log", seconds, command, ("build",)))
    steps += _sanitizer(python, [*bench, "--one-of-each"], simulate)
    # No limit fits every machine that simulates; those of a GPU must not decide here.
    return [replace(step, seconds=5 * step.seconds) for step in steps] if simulate else steps


def _tensor_cores(out: Path, simulate: bool) -> Step:
    """Hopper only: other chips have no wgmma, and a program for sm_90a does not start there."""
    skip = "it measures a chip" if simulate else _absent("nvcc")
    program, source = out / "tensor_cores", REPO / "scripts" / "gpu" / "tensor_cores.cu"
    build = f"nvcc -std=c++17 -O2 -gencode=arch=compute_90a,code=sm_90a -o {program} {source}"
    command = ["sh", "-c", f"{build} && {program} {out}; code=$?; rm -f {program}; exit $code"]
    return Step("tensor-cores", "build.log", 90, command, ("gpu",), skip, optional=True)


def _sanitizer(python: str, command: list[str], simulate: bool) -> list[Step]:
    """Without torch's caching every tensor is an allocation of its own, and what lies beside it forbidden."""
    if simulate:
        return [Step("one-of-each", "sanitizer.log", 60, command, ("build",))]
    program, absent = "compute-sanitizer", _absent("compute-sanitizer")
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def under(tool: str, *run: str) -> list[str]:
        return [program, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9", *run]

    # Some machines have the program and cannot run it: torch alone under it says which these are.
    works = under("memcheck", python, "-c", ANY_KERNEL)
    steps = [Step("sanitizer", "sanitizer.log", 60, works, ("gpu",), absent, optional=True, env=alone)]
    for tool in TOOLS:
        needs = ("build", "sanitizer")
        steps.append(Step(f"sanitizer-{tool}", "sanitizer.log", 60, under(tool, *command), needs, env=alone))
    return steps


def _absent(program: str) -> str:
    return "" if shutil.which(program) else f"there is no {program} here"


# ---- running ---------------------------------------------------------------------------------------


class Check:
    """Runs steps within the budget and keeps check.json up to date."""

    def __init__(self, out: Path, budget: float = BUDGET) -> None:
        self.out, self.budget, self.started = out, budget, time.monotonic()
        self.results: list[Result] = []

    def run(self, steps: list[Step]) -> bool:
        """All steps; whether none of them failed."""
        for step in steps:
            self.results.append(self._one(step))
            self._write(steps)
            result = self.results[-1]
            print(
                f"{result.name}: {result.status} ({result.seconds:.0f} s) {result.why}".rstrip(), flush=True
            )
        return self._passed(steps)

    def _passed(self, steps: list[Step]) -> bool:
        bad = {result.name for result in self.results if result.status in ("failed", "timed out")}
        return not bad & {step.name for step in steps if not step.optional}

    def _one(self, step: Step) -> Result:
        done = {result.name: result.status for result in self.results}
        missing = [name for name in step.needs if done.get(name) != "ok"]
        left = self.budget - (time.monotonic() - self.started)
        if step.skip or missing:
            return Result(step.name, "skipped", why=step.skip or f"{missing[0]} was not ok")
        if left < LEAST:
            return Result(step.name, "skipped", why="no time was left")
        began = time.monotonic()
        with open(self.out / step.log, "a+", errors="replace") as log:
            log.write(f"==== {step.name}: {' '.join(step.command)}\n")
            log.flush()
            said_from = log.tell()
            code = _run(step, log, min(step.seconds, left))
            seconds = time.monotonic() - began
            log.seek(max(said_from, log.seek(0, os.SEEK_END) - 64_000))
            tail = log.read().splitlines()[-30:]
            log.write(f"\n==== {step.name}: exit code {code}, {seconds:.1f} s\n")
        if code == 0:
            return Result(step.name, "ok", seconds, code)
        return Result(step.name, "timed out" if code is None else "failed", seconds, code, tail=tail)

    def _write(self, steps: list[Step]) -> None:
        report = {
            "passed": self._passed(steps) and len(self.results) == len(steps),
            "seconds": round(time.monotonic() - self.started, 1),
            "steps": [asdict(result) for result in self.results],
            "not reached": [step.name for step in steps[len(self.results) :]],
        }
        whole = self.out / "check.part"
        whole.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(whole, self.out / "check.json")


def _run(step: Step, log: IO[str], seconds: float) -> int | None:
    """Exit code, None if it ran out of time; nothing that it started lives on."""
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | step.env
    try:
        process = subprocess.Popen(
            step.command,
            cwd=REPO,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    except OSError as error:
        log.write(f"{error}\n")
        return 127
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        _kill(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        return None
    finally:
        _kill(process, signal.SIGKILL)
        process.wait()


def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--simulate", action="store_true")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    budget = 3600 if args.simulate else BUDGET  # a simulated run lends nobody's machine
    out.mkdir(parents=True, exist_ok=True)
    for old in FILES:
        (out / old).unlink(missing_ok=True)
    return 0 if Check(out, budget).run(plan(out, sys.executable, args.simulate)) else 1


if __name__ == "__main__":
    sys.exit(main())
