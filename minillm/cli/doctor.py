"""`minillm doctor`: what this machine has, what minillm will use of it, and what to do about the rest.

A report, not a gate: a missing compiler or GPU is a fact about the machine, and the reference backend
runs without either. Only what minillm cannot run without (Python, torch) is a *problem* and sets the
exit code. Nothing here may fail on a broken machine, since that is when it is needed: torch is imported
late, and an import that fails is a line in the table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 10)
ZOO_MODELS = ("storyteller-6m", "storyteller-1m")
OPTIONAL_PACKAGES = {
    "matplotlib": 'plots: pip install "minillm[plots]"',
    "jupytext": 'notebooks: pip install "minillm[notebooks]"',
    "transformers": "comparison with Hugging Face: pip install transformers",
}
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve", "i8mm")

Status = Literal["ok", "info", "missing", "problem"]
STYLES: dict[Status, str] = {"ok": "green", "info": "cyan", "missing": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Check:
    """One line of the report: `advice` says what to do about it, and is empty when there is nothing to do."""

    name: str
    status: Status
    value: str
    advice: str = ""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser("doctor", help="check this machine: torch, compilers, GPUs, models")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the report to stdout; 1 if something minillm needs is broken, else 0."""
    checks = collect()
    healthy = all(check.status != "problem" for check in checks)
    if args.json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print_table(checks)
    return 0 if healthy else 1


def print_table(checks: list[Check]) -> None:
    """Print the checks as a table, what to do under the value where there is something to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "status", "value", title="minillm doctor", title_justify="left")
    for check in checks:
        # Text, not str: rich would read a path with [brackets] as markup.
        value = Text(check.value, overflow="fold")
        if check.advice:
            value.append(f"\n-> {check.advice}", style="dim")
        table.add_row(Text(check.name), Text(check.status, style=STYLES[check.status]), value)
    Console().print(table)


def collect() -> list[Check]:
    """Every check, in the order a reader wants them: what runs, on what, and what could be added."""
    torch, torch_error = import_torch()
    checks = [check_python(sys.version_info[:3]), check_minillm(), check_torch(torch, torch_error)]
    checks += [check_cpu(), check_threads(torch), check_memory()]
    checks += [check_gpu(torch), check_compiler(), check_nvcc()]
    checks += [check_model(name) for name in ZOO_MODELS]
    checks += [check_backend(torch)]
    checks += [check_package(name, purpose) for name, purpose in OPTIONAL_PACKAGES.items()]
    return checks


# --- Python, minillm, torch ---------------------------------------------------------------------------


def check_python(version: tuple[int, int, int]) -> Check:
    """Python itself, given as (major, minor, micro)."""
    value = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version[:2] < MIN_PYTHON:
        return Check("python", "problem", value, "install Python 3.11 or newer")
    return Check("python", "ok", value)


def check_minillm() -> Check:
    """The version pip knows, and the folder the code is really loaded from."""
    try:
        version = importlib.metadata.version("minillm")
    except importlib.metadata.PackageNotFoundError:
        return Check("minillm", "info", f"not installed, run from {package_dir()}", "pip install -e .")
    return Check("minillm", "ok", f"{version} ({package_dir()})")


def package_dir() -> Path:
    """The folder of the running `minillm` package."""
    return Path(__file__).resolve().parent.parent


def import_torch() -> tuple[ModuleType | None, str]:
    """(torch, "") or (None, why it cannot be imported)."""
    try:
        import torch
    except Exception as error:  # a damaged torch raises OSError and AttributeError, not only ImportError
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return torch, ""


def check_torch(torch: ModuleType | None, error: str) -> Check:
    """Whether torch imports, is new enough, and which build it is."""
    if torch is None:
        return Check("torch", "problem", f"cannot be imported: {error}", 'pip install "torch>=2.10"')
    version = str(torch.__version__)
    build = "CPU build"
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda} build"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip} build"
    if not is_torch_supported(version):
        return Check("torch", "problem", f"{version}, {build}", 'pip install "torch>=2.10"')
    return Check("torch", "ok", f"{version}, {build}")


def is_torch_supported(version: str) -> bool:
    """2.10 or newer in pip's order, where 2.10.0a0 (a vendor's early build) comes before 2.10."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(a|b|rc|\.dev)?", version)
    if match is None:
        return False
    is_final = match[4] is None
    return (int(match[1]), int(match[2]), int(match[3] or 0), is_final) >= (*MIN_TORCH, 0, True)


# --- the machine --------------------------------------------------------------------------------------


def check_cpu() -> Check:
    """The processor and the vector instructions that the kernels care about."""
    cpuinfo = read_text("/proc/cpuinfo")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    features = cpu_features(cpuinfo)
    value = f"{platform.machine()}, {model[1].strip() if model else platform.processor() or 'unknown model'}"
    return Check("cpu", "info", f"{value}, {' '.join(features) or 'no vector features reported'}")


def cpu_features(cpuinfo: str) -> list[str]:
    """Those of CPU_FEATURES that Linux's /proc/cpuinfo lists (x86 calls the line flags, Arm Features)."""
    line = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(line[1].split()) if line else set()
    return [feature for feature in CPU_FEATURES if feature in present]


def check_threads(torch: ModuleType | None) -> Check:
    """Cores this process may use (a container may have fewer than the machine) and torch's threads."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f", torch uses {torch.get_num_threads()} threads" if torch else ""
    return Check("cores", "info", f"{usable} usable of {os.cpu_count()}{threads}")


def check_memory() -> Check:
    """Total and available memory, and the container's limit where there is one."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    value = f"{total / 2**30:.1f} GiB"
    available = re.search(r"^MemAvailable:\s*(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE)
    if available:
        value += f", {int(available[1]) / 2**20:.1f} GiB available"
    limit = read_text("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        value += f", limited to {int(limit) / 2**30:.1f} GiB by the container"
    return Check("memory", "info", value)


def check_gpu(torch: ModuleType | None) -> Check:
    """The GPUs that this torch can use."""
    if torch is None:
        return Check("gpu", "missing", "unknown", "repair torch first")
    if not torch.cuda.is_available():
        advice = "" if torch.version.cuda is None else "this torch is a CUDA build: check with nvidia-smi"
        return Check("gpu", "info", "none that torch can use; everything runs on the CPU", advice)
    return Check("gpu", "ok", "; ".join(describe_gpu(torch, i) for i in range(torch.cuda.device_count())))


def describe_gpu(torch: ModuleType, index: int) -> str:
    """Name, compute capability and memory of one GPU."""
    gpu = torch.cuda.get_device_properties(index)
    return f"{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB)"


# --- tools for building kernels -----------------------------------------------------------------------


def check_compiler() -> Check:
    """The first C++ compiler that runs, as the kernels' builder finds it."""
    from minillm.ops.building import find_compiler

    compiler = find_compiler()
    if compiler is not None:
        return Check("c++ compiler", "ok", f"{compiler.path}: {compiler.version}")
    advice = "Debian, Ubuntu: apt install g++; macOS: xcode-select --install"
    return Check("c++ compiler", "missing", "none", advice)


def check_nvcc() -> Check:
    """The CUDA compiler, believed only where its headers are."""
    cuda_home = find_cuda_home()
    if cuda_home is None:
        return Check("nvcc", "info", "none", "only for building CUDA kernels: install the CUDA toolkit")
    nvcc = str(cuda_home / "bin" / "nvcc")
    release = re.search(r"release [\d.]+", output_of([nvcc, "--version"]))
    return Check("nvcc", "ok", f"{nvcc}: {release[0] if release else 'unknown release'}")


def find_cuda_home() -> Path | None:
    """The CUDA toolkit's folder.

    An `nvcc` on the PATH may be a wrapper script in /usr/local/bin, far from the headers, so a folder
    counts only if it holds both the compiler and include/cuda_runtime.h.
    """
    nvcc = shutil.which("nvcc")
    candidates = [Path(nvcc).resolve().parent.parent] if nvcc else []
    if os.environ.get("CUDA_HOME"):
        candidates.append(Path(os.environ["CUDA_HOME"]))
    candidates.append(Path("/usr/local/cuda"))
    return next((home for home in candidates if is_cuda_home(home)), None)


def is_cuda_home(folder: Path) -> bool:
    """Whether a folder holds both nvcc and the CUDA runtime's headers."""
    return (folder / "bin" / "nvcc").is_file() and (folder / "include" / "cuda_runtime.h").is_file()


# --- minillm's own parts ------------------------------------------------------------------------------


def check_model(name: str) -> Check:
    """A model that ships with the package."""
    folder = package_dir() / "zoo" / name
    if (folder / "config.json").is_file():
        return Check(f"model {name}", "ok", str(folder))
    return Check(f"model {name}", "missing", f"not in {folder}", "reinstall minillm, or give --model FOLDER")


def check_backend(torch: ModuleType | None) -> Check:
    """The backend that `backend="auto"` takes, and why; nothing is compiled for the answer."""
    if torch is None:
        return Check("backend", "missing", "unknown", "repair torch first")
    if torch.cuda.is_available():
        advice = 'backend="native" takes the CUDA kernels, which no GPU has tried yet'
        return Check("backend", "ok", "reference (PyTorch) on the GPU", advice)
    from minillm.ops import building

    try:
        library, compiler = building.find_library(), building.find_compiler()
    except (building.BuildFailed, OSError) as error:
        return Check("backend", "missing", f"reference (PyTorch): {error}", "reinstall minillm")
    if library is not None:
        path = os.environ.get("MINILLM_CPU_PATH") or "the best code path this processor has"
        return Check("backend", "ok", f"native (CPU kernels compiled: {library}), {path}")
    if compiler is None:
        advice = "with a C++ compiler the kernels are compiled on first use"
        return Check("backend", "missing", "reference (PyTorch): there is no C++ compiler", advice)
    where = building.cache_folder()
    return Check("backend", "ok", f"native: the CPU kernels are compiled on first use, into {where}")


def check_package(name: str, purpose: str) -> Check:
    """An optional Python package; `purpose` says what it is for and how to get it."""
    # Not by importing: transformers alone takes seconds.
    if importlib.util.find_spec(name) is None:
        return Check(name, "info", "not installed", purpose)
    return Check(name, "ok", installed_version(name))


def installed_version(name: str) -> str:
    """The version pip knows; a package can also be there without pip."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


# --- helpers ------------------------------------------------------------------------------------------


def read_text(path: str) -> str:
    """A file's text, or "" where the system has no such file (macOS has no /proc)."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def output_of(command: list[str]) -> str:
    """What a command prints to stdout, or "" if it does not run, fails, or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
