"""From csrc/cpu to one shared library: compiled once, kept, found again.

    sources, flags, torch, platform --> source key --+
    compiler and its version ---------> compiler key -+--> cpu-<source key>-<compiler key>.so

    looked for in   minillm/kernels (put there by setup.py, when asked)
                    the cache: $MINILLM_CACHE, else $XDG_CACHE_HOME/minillm, else ~/.cache/minillm
    else compiled   into a folder of its own beside its place, then renamed into place

No flag names this processor: the library carries code for each and chooses when it is loaded, so a
cache on a shared home directory serves every machine. A lock that the kernel holds for the process
(`flock`) keeps two first uses from compiling twice, and vanishes with a process that is killed; the
rename means that a file in the cache is always whole. A cache that cannot be written is no error: the
library is then built for this process alone. Without a compiler the reference backend runs, and says so
once.

Standard library only, torch where it is needed: setup.py runs this file too.

    variable           value                        effect
    CXX                a program                    the compiler, instead of the first of c++, g++, clang++
    MINILLM_CACHE      a folder                     where compiled kernels are kept
    MINILLM_CPU_PATH   avx512_bf16, avx2, generic   the instruction set to run on, instead of the best one
    MINILLM_PREBUILD   1                            setup.py compiles ahead of time, into minillm/kernels
    MINILLM_SANITIZE   1                            compile with ASan and UBSan: scripts/full_check.sh

Left out: Windows. ninja and torch.utils.cpp_extension: nine files need neither, and the extension's cache
does not notice another torch, nor a build that was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
PREBUILT = PACKAGE / "kernels"
FLAGS = (
    "-O3 -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-strict-aliasing "
    "-DTORCH_TARGET_VERSION=0x020a000000000000 -Wall -Wextra -Wno-psabi -Wno-uninitialized"
).split()
SANITIZE = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined".split()
# isa.cpp is compiled once for each of these; the last one is for every machine.
ISAS = {
    "avx512": ["-DMINILLM_ISA_AVX512", *(f"-mavx512{x}" for x in ("f", "bw", "vl", "dq", "bf16")), "-mfma"],
    "avx2": ["-DMINILLM_ISA_AVX2", "-mavx2", "-mfma", "-mf16c"],
    "generic": [],
}
Progress = Callable[[int, int], None]


class BuildFailed(Exception):
    """The kernels cannot be compiled here; the message says why, with the compiler's own words."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that runs, and the first line of what it says of itself."""

    path: str
    version: str


def find_sources() -> Path:
    """csrc/cpu: beside the package in a checkout, inside it when installed."""
    for folder in (PACKAGE.parent / "csrc" / "cpu", PACKAGE / "csrc" / "cpu"):
        if (folder / "isa.cpp").is_file():
            return folder
    raise BuildFailed("the kernels' sources (csrc/cpu) are not there")


def find_compiler() -> Compiler | None:
    """The first of $CXX, c++, g++ and clang++ that runs."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if not path:
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
            return Compiler(path, said.stdout.partition("\n")[0].strip())
    return None


def cache_folder() -> Path:
    """Where compiled kernels are kept; it need not exist."""
    own = os.environ.get("MINILLM_CACHE")
    if own:
        return Path(own).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # a user without a home directory
        return (Path(home) if home else Path("~/.cache").expanduser()) / "minillm"
    return Path(tempfile.gettempdir()) / f"minillm-{os.getuid()}"


def find_library() -> Path | None:
    """The library of these sources and this torch, if it is compiled already."""
    source_key, compiler = _source_key(), find_compiler()
    for folder in (PREBUILT, cache_folder()):
        # Without a compiler any compiler's work will do; so will it where setup.py put one file there.
        exact = compiler and folder != PREBUILT
        names = [_name(source_key, compiler)] if exact and compiler else [f"cpu-{source_key}-*.so"]
        with contextlib.suppress(OSError):
            found = sorted(path for name in names for path in folder.glob(name))
            if found:
                return found[0]
    return None


def build_library(progress: Progress | None = None) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """Compile into the cache, or into a temporary folder where the cache cannot be written.

    Args:
        progress: called with (files compiled, files in all).

    Returns:
        The library, and the temporary folder it lies in: to be removed once it is loaded.

    Raises:
        BuildFailed: no compiler, no sources, or the compiler's complaint.
    """
    compiler, name = require_compiler(), library_name()
    try:
        with locked_cache(cache_folder()) as folder:
            if not (folder / name).is_file():  # nobody else has built it while we waited
                clear_leftovers(folder)
                compile_into(folder, name, compiler, progress)
            return folder / name, None
    except OSError:
        temporary = tempfile.TemporaryDirectory(prefix="minillm-")
        return compile_into(Path(temporary.name), name, compiler, progress), temporary


def compile_into(folder: Path, name: str, compiler: Compiler, progress: Progress | None = None) -> Path:
    """Compile every source and link `folder / name`, which appears whole or not at all."""
    sources = find_sources()
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        jobs = [(f"isa-{isa}", sources / "isa.cpp", flags) for isa, flags in _isas().items()]
        jobs += [
            (source.stem, source, []) for source in sorted(sources.glob("*.cpp")) if source.stem != "isa"
        ]
        objects = [Path(scratch) / f"{job}.o" for job, _, _ in jobs]
        with ThreadPoolExecutor(num_jobs()) as pool:
            running = [
                pool.submit(
                    run_compiler, [compiler.path, *_flags(), *flags, "-c", str(source), "-o", str(target)]
                )
                for (_, source, flags), target in zip(jobs, objects, strict=True)
            ]
            for done, job in enumerate(as_completed(running), start=1):
                job.result()
                if progress:
                    progress(done, len(jobs))
        library = Path(scratch) / name
        run_compiler([compiler.path, *_link_flags(), *map(str, objects), "-o", str(library), *_libraries()])
        with open(library, "rb") as written:
            os.fsync(written)  # or a power cut could leave the name without the content
        os.replace(library, folder / name)
    return folder / name


def library_name() -> str:
    """The file name of the library that these sources, this torch and this compiler make."""
    return _name(_source_key(), require_compiler())


def require_compiler() -> Compiler:
    """`find_compiler`, or BuildFailed."""
    compiler = find_compiler()
    if compiler is None or sys.platform == "win32":
        raise BuildFailed("there is no C++ compiler")
    return compiler


# ---- parts of the command lines -------------------------------------------------------------------


def sanitizing() -> bool:
    """Whether kernels are to be compiled with sanitizers: MINILLM_SANITIZE=1."""
    return os.environ.get("MINILLM_SANITIZE") == "1"


def _isas() -> dict[str, list[str]]:
    return ISAS if platform.machine() in ("x86_64", "AMD64") else {"generic": []}


def _flags() -> list[str]:
    named = f"-ffile-prefix-map={find_sources()}=csrc/cpu"  # messages name files as the reader knows them
    return [*FLAGS, named, *(SANITIZE if sanitizing() else []), "-isystem", str(torch_folder() / "include")]


def _link_flags() -> list[str]:
    if sys.platform == "darwin":
        return ["-dynamiclib", "-undefined", "dynamic_lookup"]
    return ["-shared", *(SANITIZE if sanitizing() else [])]


def _libraries() -> list[str]:
    return ["-L" + str(torch_folder() / "lib"), "-ltorch_cpu"]


def torch_folder() -> Path:
    """Where torch is installed: its headers are in include, its libraries in lib."""
    import torch

    return Path(torch.__file__).resolve().parent


def num_jobs() -> int:
    """How many compilers to run at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, 8))


def run_compiler(command: list[str]) -> None:
    """Run a compiler; BuildFailed with its first complaints if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        complaint = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no message"]
        raise BuildFailed(f"{Path(command[0]).name} failed: " + "; ".join(complaint[:3]))


# ---- keys, lock, leftovers ------------------------------------------------------------------------


def _source_key() -> str:
    import torch

    sources = find_sources()
    digest = hashlib.sha256()
    for path in sorted(sources.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    settings = [FLAGS, _isas(), SANITIZE if sanitizing() else [], torch.__version__, sys.platform]
    digest.update(repr([*settings, platform.machine()]).encode())
    return digest.hexdigest()[:20]


def _name(source_key: str, compiler: Compiler) -> str:
    compiler_key = hashlib.sha256(compiler.version.encode()).hexdigest()[:8]
    return f"cpu-{source_key}-{compiler_key}.so"


@contextlib.contextmanager
def locked_cache(folder: Path) -> Iterator[Path]:
    """Hold the cache's lock. The lock dies with its process, however that ends."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed build left; the lock is held, so nobody is building in there."""
    for leftover in folder.glob("build-*"):
        shutil.rmtree(leftover, ignore_errors=True)
