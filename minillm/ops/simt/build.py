"""The simulator's libraries, compiled on first use into the cache of `ops/building.py`.

    csrc/simt/*.cpp                 -> simt-<key>.so       the machine, a Python module
    any .cu file (+ csrc/cuda/*.h)  -> <name>-<key>.so     kernels, every access a call into the machine

Two kinds of flags, because the machine must not watch itself. `-O1` and no reordering of memory
accesses keep what is counted what the source says.

    $CXX            the compiler, as for the CPU kernels
    addr2line       (binutils, optional) turns an address in a kernel into a line
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from minillm.ops.building import (
    PACKAGE,
    BuildFailed,
    Compiler,
    cache_folder,
    clear_leftovers,
    find_compiler,
    locked_cache,
    num_jobs,
    run_compiler,
    torch_folder,
)

COMMON = "-std=c++20 -g -fPIC -Wall -Wextra -ffp-contract=off -fno-strict-aliasing -fno-threadsafe-statics".split()
MACHINE = [*COMMON, "-O2"]
KERNEL = [*COMMON, "-x", "c++", "-O1", "-fno-tree-sink", "-fsanitize=thread", "-Wno-unknown-pragmas"]


# The binding uses torch's stable headers only: one library serves torch 2.10 and later.
BINDING = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]


_SOURCES = (".h", ".cpp", ".cu")


@dataclass(frozen=True)
class Unit:
    """One source file and how it is compiled; by nvcc if that is named."""

    source: Path
    flags: Sequence[str]
    compiler: str | None = None


def csrc() -> Path:
    """The folder with simt/ and cuda/: beside the package in a checkout, inside it when installed.

    Raises:
        BuildFailed: it is not there.
    """
    for folder in (PACKAGE.parent / "csrc", PACKAGE / "csrc"):
        if (folder / "simt" / "simt.h").is_file():
            return folder
    raise BuildFailed("the simulator's sources (csrc/simt) are not there")


def build_machine() -> Path:
    """The simulator itself, as a Python module named like its file.

    Raises:
        BuildFailed: no compiler, no sources, or the compiler's complaint.
    """
    includes = ["-isystem", str(torch_folder() / "include"), "-isystem", sysconfig.get_paths()["include"]]
    flags = [*MACHINE, "-DMINILLM_MODULE=simt_machine", *includes]
    return build("simt", [Unit(path, flags) for path in sorted((csrc() / "simt").glob("*.cpp"))])


def build_ops() -> Path:
    """All of csrc/cuda with its torch binding, for CPU tensors.

    Raises:
        BuildFailed: no compiler, no sources, or the compiler's complaint.
    """
    folder, torch_include = csrc() / "cuda", ["-isystem", str(torch_folder() / "include")]
    bound = [*MACHINE, *BINDING, "-DMINILLM_SIMT", *torch_include]
    units = [Unit(folder / "bind.cpp", bound)]
    units += [Unit(path, KERNEL) for path in sorted(folder.glob("*.cu"))]
    return build("simt-ops", units, ["-L" + str(torch_folder() / "lib"), "-ltorch_cpu"])


def build_kernels(source: Path, flags: Sequence[str] = ()) -> Path:
    """One .cu file as a library of its own. It may include the headers of csrc/cuda.

    Raises:
        BuildFailed: no compiler, no such file, or the compiler's complaint.
    """
    if not source.is_file():
        raise BuildFailed(f"{source} is not a file")
    unit = Unit(source.resolve(), [*KERNEL, "-I", str(csrc() / "cuda"), *flags])
    return build(source.stem, [unit])


def build(name: str, units: Sequence[Unit], libraries: Sequence[str] = ()) -> Path:
    """Compile `units` and link them, unless the cache has the result already.

    Raises:
        BuildFailed: no compiler, or its complaint.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildFailed("there is no C++ compiler")
    file = f"{name}-{_key(units, libraries, compiler)}.so"
    with locked_cache(cache_folder()) as folder:
        if not (folder / file).is_file():
            clear_leftovers(folder)
            _compile(folder / file, compiler, units, libraries)
    return folder / file


def _compile(target: Path, compiler: Compiler, units: Sequence[Unit], libraries: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as scratch:
        objects = [Path(scratch) / f"{i}.o" for i in range(len(units))]
        with ThreadPoolExecutor(num_jobs()) as pool:
            jobs = [
                pool.submit(
                    run_compiler,
                    [unit.compiler or compiler.path, *unit.flags, "-c", str(unit.source), "-o", str(out)],
                )
                for unit, out in zip(units, objects, strict=True)
            ]
            for job in jobs:
                job.result()
        whole = Path(scratch) / target.name
        # What the machine and torch define is found when the library is loaded.
        shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        run_compiler([compiler.path, *shared, *map(str, objects), "-o", str(whole), *libraries])
        os.replace(whole, target)


def _key(units: Sequence[Unit], libraries: Sequence[str], compiler: Compiler) -> str:
    import torch

    digest = hashlib.sha256()
    # Sources may include each other and the headers, but nothing from further away.
    folders = dict.fromkeys([csrc() / "simt", csrc() / "cuda", *(unit.source.parent for unit in units)])
    for path in (path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in _SOURCES):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    settings = [[(unit.source.name, list(unit.flags)) for unit in units], list(libraries), compiler.version]
    settings += [torch.__version__, sys.version, sys.platform, platform.machine()]
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:20]
