"""The real kernels in new processes: first use, no compiler, a damaged file, setup.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

LOAD = """
import logging, sys
from minillm.model.loader import make_ops
if sys.argv[2:]:
    logging.basicConfig(level=sys.argv[2], format="%(name)s: %(message)s")
for _ in range(2):
    print(make_ops(sys.argv[1]).name)
"""


def load(backend: str, *log_level: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", LOAD, backend, *log_level],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_no_compiler_is_said_once_and_the_reference_runs(tmp_path: Path) -> None:
    """A warning: it shows where logging is not configured."""
    nothing = {"CXX": "", "PATH": "/nonexistent", "MINILLM_CACHE": str(tmp_path)}
    done = load("auto", **nothing)
    assert done.stdout == "reference\nreference\n"
    assert [line for line in done.stderr.splitlines() if "PyTorch" in line] == [
        "running on PyTorch (reference backend): there is no C++ compiler"
    ]
    assert (
        "BackendError: the native kernels are not available: there is no C++ compiler"
        in load("native", **nothing).stderr
    )


def test_first_use_is_logged_once_and_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    cache = tmp_path / "a cache"
    quick = tmp_path / "quick c++"
    quick.write_text(f'#!/bin/sh\nexec "{COMPILER}" "$@" -O0\n')
    quick.chmod(0o755)
    environment = {"CXX": str(quick), "MINILLM_CACHE": str(cache)}
    notice = f"minillm.toolchain.library: compiling cpu kernels (kept in {cache})"
    done = load("native", "INFO", **environment)
    assert (done.stdout, done.stderr.strip()) == ("native\nnative\n", notice)
    done = load("native", "INFO", **environment)
    assert (done.stdout, done.stderr) == ("native\nnative\n", "")
    (library,) = cache.glob("*.so")
    size = library.stat().st_size
    os.truncate(library, size // 2)  # as after a power failure
    done = load("native", **environment)
    assert (done.stdout, done.stderr) == ("native\nnative\n", ""), "silent where logging is not configured"
    assert library.stat().st_size == size


def test_setup_compiles_ahead_of_time_only_when_asked(tmp_path: Path) -> None:
    checkout = tmp_path / "check out"
    ignore = shutil.ignore_patterns("zoo", "kernels", "__pycache__")
    shutil.copytree(REPO / "minillm", checkout / "minillm", ignore=ignore)
    for part in ("cpu", "shared"):
        shutil.copytree(REPO / "csrc" / part, checkout / "csrc" / part)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, checkout)
    quick = tmp_path / "c++"
    quick.write_text(f'#!/bin/sh\nexec "{COMPILER}" "$@" -O0\n')
    quick.chmod(0o755)

    def hide(*names: str) -> str:
        """A folder for PYTHONPATH with packages that cannot be imported."""
        folder = tmp_path / " ".join(names)
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text(f"raise ImportError('{name} was imported')")
        return str(folder)

    def build(target: str, **environment: str) -> Path:
        command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", target]
        subprocess.run(command, cwd=checkout, env=os.environ | environment, check=True, timeout=600)
        return checkout / target / "minillm"

    plain = build("plain", PYTHONPATH=hide("torch"))
    assert (plain / "csrc" / "cpu" / "isa.cpp").is_file() and not (plain / "kernels").exists()
    others = hide("rich", "tokenizers", "safetensors", "jinja2", "huggingface_hub")
    package = build("ahead", MINILLM_PREBUILD="1", CXX=str(quick), PYTHONPATH=others)
    assert len(list((package / "kernels").glob("cpu-*.so"))) == 1
    done = load(
        "native", PYTHONPATH=str(package.parent), PATH="/nonexistent", CXX="", MINILLM_CACHE=str(tmp_path)
    )
    assert (done.stdout, done.stderr) == ("native\nnative\n", "")
