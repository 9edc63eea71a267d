"""Compiling the kernels: killed half-way, twice at once, nowhere to write, odd paths, no compiler.

Most tests build a library of two small sources, so that they take a second; the last ones the real one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

# Builds in a process of its own, from the sources in argv[1], and loads what came out.
BUILD = """
import ctypes, importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("building", sys.argv[2])
building = sys.modules["building"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(building)
building.find_sources = lambda: Path(sys.argv[1])
path = building.find_library()
temporary = None
if path is None:
    path, temporary = building.build_library()
print(path, ctypes.CDLL(str(path)).answer())
"""


class Builder:
    """A small library, a cache, and a compiler that writes down what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.sources, self.cache, self.log = folder / "so urces", folder / "a cache", folder / "log"
        self.sources.mkdir()
        (self.sources / "isa.cpp").write_text("")
        (self.sources / "answer.cpp").write_text(
            'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'
        )
        self.compiler = folder / "c++ wrapper"
        self.write_compiler(f'exec "{COMPILER}" "$@"')

    def write_compiler(self, script: str) -> None:
        self.compiler.write_text(f'#!/bin/sh\necho "$*" >>"{self.log}"\n{script}\n')
        self.compiler.chmod(0o755)

    @property
    def num_compiled(self) -> int:
        """Sources compiled so far, the instruction sets of isa.cpp counted apart."""
        return sum(" -c " in line for line in self.log.read_text().splitlines()) if self.log.exists() else 0

    def start(self, **environment: str) -> subprocess.Popen[str]:
        building = REPO / "minillm" / "ops" / "building.py"
        own = {"CXX": str(self.compiler), "MINILLM_CACHE": str(self.cache)}
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, str(self.sources), str(building)],
            env=os.environ | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def build(self, **environment: str) -> str:
        out, complaint = self.start(**environment).communicate(timeout=120)
        assert out.endswith(" 42\n"), complaint
        return out.removesuffix(" 42\n")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_built_once_and_found_again_in_a_path_with_spaces(builder: Builder) -> None:
    first = builder.build()
    assert Path(first).parent == builder.cache
    count = builder.num_compiled
    assert count > 1
    assert builder.build() == first
    assert builder.num_compiled == count
    assert sorted(path.name for path in builder.cache.iterdir()) == [Path(first).name, "lock"]


def test_another_source_flag_or_compiler_is_another_library(builder: Builder) -> None:
    names = {builder.build()}
    (builder.sources / "answer.cpp").write_text((builder.sources / "answer.cpp").read_text() + "// changed\n")
    names.add(builder.build())
    builder.write_compiler(f'[ "$1" = --version ] && echo newer && exit; exec "{COMPILER}" "$@"')
    names.add(builder.build())
    assert len(names) == 3


def test_without_a_compiler_the_library_is_still_found(builder: Builder) -> None:
    assert builder.build() == builder.build(CXX="", PATH="/nonexistent")


def test_killed_half_way(builder: Builder) -> None:
    """The lock dies with its process, and what it left is neither used nor kept."""
    builder.write_compiler(f'[ "$1" = --version ] && exec "{COMPILER}" "$@"; sleep 600')
    victim = builder.start()
    while builder.num_compiled == 0:
        assert victim.poll() is None
        time.sleep(0.01)
    assert list(builder.cache.glob("build-*")), "control: it was killed while it was building"
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    builder.write_compiler(f'exec "{COMPILER}" "$@"')
    library = builder.build()
    assert sorted(path.name for path in builder.cache.iterdir()) == [Path(library).name, "lock"]


def test_started_twice_at_once(builder: Builder) -> None:
    """One compiles, the other waits for it."""
    builder.write_compiler(f'[ "$1" = --version ] || sleep 0.5; exec "{COMPILER}" "$@"')
    both = [builder.start() for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert outputs[0] == outputs[1] and outputs[0].endswith(" 42\n")
    twice = builder.num_compiled
    shutil.rmtree(builder.cache)
    builder.build()
    assert builder.num_compiled == twice + twice, "the second build alone compiles as much as both did"


def test_a_cache_that_cannot_be_written(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / "cache", Path("/proc/minillm")):
        library = builder.build(MINILLM_CACHE=str(cache))
        assert not Path(library).exists(), "a library for one process is removed with it"
    if os.getuid():  # root writes everywhere
        builder.cache.mkdir(mode=0o500)
        assert Path(builder.build()).parent != builder.cache


def test_a_compiler_that_fails_is_quoted(builder: Builder) -> None:
    (builder.sources / "answer.cpp").write_text("int answer( { }\n")
    complaint = builder.start().communicate(timeout=120)[1]
    assert "BuildFailed" in complaint and "answer.cpp" in complaint and "error" in complaint
    assert [path.name for path in builder.cache.iterdir()] == ["lock"]


# ---- the real kernels -----------------------------------------------------------------------------

LOAD = """
import sys
from minillm.model.loader import make_ops
for _ in range(2):
    print(make_ops(sys.argv[1]).name)
"""


def load(backend: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", LOAD, backend],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_no_compiler_is_said_once_and_the_reference_runs(tmp_path: Path) -> None:
    nothing = {"CXX": "", "PATH": "/nonexistent", "MINILLM_CACHE": str(tmp_path)}
    done = load("auto", **nothing)
    assert done.stdout == "reference\nreference\n"
    assert [line for line in done.stderr.splitlines() if "minillm" in line] == [
        "minillm: running on PyTorch (reference backend): there is no C++ compiler"
    ]
    assert (
        "BackendError: the native kernels are not available: there is no C++ compiler"
        in load("native", **nothing).stderr
    )


def test_first_use_says_so_once_and_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    cache = tmp_path / "a cache"
    quick = tmp_path / "quick c++"
    quick.write_text(f'#!/bin/sh\nexec "{COMPILER}" "$@" -O0\n')
    quick.chmod(0o755)
    environment = {"CXX": str(quick), "MINILLM_CACHE": str(cache)}
    notice = f"minillm: compiling the CPU kernels, once (kept in {cache})"
    done = load("native", **environment)
    assert (done.stdout, done.stderr.strip()) == ("native\nnative\n", notice)
    done = load("native", **environment)
    assert (done.stdout, done.stderr) == ("native\nnative\n", "")
    (library,) = cache.glob("*.so")
    library.write_bytes(b"")  # what a disk without power can make of a file
    done = load("native", **environment)
    assert (done.stdout, done.stderr.strip()) == ("native\nnative\n", notice)
    assert library.stat().st_size > 0


def test_setup_compiles_ahead_of_time_only_when_asked(tmp_path: Path) -> None:
    checkout = tmp_path / "check out"
    ignore = shutil.ignore_patterns("zoo", "kernels", "__pycache__")
    shutil.copytree(REPO / "minillm", checkout / "minillm", ignore=ignore)
    shutil.copytree(REPO / "csrc" / "cpu", checkout / "csrc" / "cpu")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, checkout)
    quick = tmp_path / "c++"
    quick.write_text(f'#!/bin/sh\nexec "{COMPILER}" "$@" -O0\n')
    quick.chmod(0o755)
    no_torch = tmp_path / "site"
    (no_torch / "torch").mkdir(parents=True)
    (no_torch / "torch" / "__init__.py").write_text("raise ImportError('torch was asked for')")

    def build(target: str, **environment: str) -> Path:
        command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", target]
        subprocess.run(command, cwd=checkout, env=os.environ | environment, check=True, timeout=600)
        return checkout / target / "minillm"

    plain = build("plain", PYTHONPATH=str(no_torch))
    assert (plain / "csrc" / "cpu" / "isa.cpp").is_file() and not (plain / "kernels").exists()
    package = build("ahead", MINILLM_PREBUILD="1", CXX=str(quick))
    assert len(list((package / "kernels").glob("cpu-*.so"))) == 1
    done = load(
        "native", PYTHONPATH=str(package.parent), PATH="/nonexistent", CXX="", MINILLM_CACHE=str(tmp_path)
    )
    assert (done.stdout, done.stderr) == ("native\nnative\n", "")
