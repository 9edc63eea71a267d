"""Any few sources of csrc to one library in the cache of `building.py`: what simulator and CUDA share.

    units (source, flags, compiler) --> objects --> <name>-<key>.so

The key covers the sources, their neighbours and headers, the flags, the compiler, torch and Python. As
for the CPU kernels a file in the cache is whole or not there, and two first uses compile once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from minillm.ops.building import (
    PACKAGE,
    BuildFailed,
    Compiler,
    cache_folder,
    clear_leftovers,
    locked_cache,
    num_jobs,
    require_compiler,
    run_compiler,
)
from minillm.progress import Bar

COMMON = (
    "-std=c++20 -g -fPIC -Wall -Wextra -ffp-contract=off -fno-strict-aliasing -fno-threadsafe-statics".split()
)
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


def find_sources(part: str, suffix: str) -> list[Path]:
    """The files of csrc/<part> that end in `suffix`, its sub-folders included, in a fixed order."""
    return sorted((csrc() / part).rglob(f"*{suffix}"))


def include_flags(part: str) -> list[str]:
    """-I for every folder of csrc/<part> with headers: a file includes them by their bare names."""
    folders = sorted({header.parent for header in find_sources(part, ".h")})
    return [word for folder in folders for word in ("-I", str(folder))]


@dataclass(frozen=True)
class Library:
    """One shared library: its units, and what to link them with. `folder` replaces the cache."""

    name: str
    units: Sequence[Unit]
    libraries: Sequence[str] = ()
    folder: Path | None = None

    def path(self) -> Path:
        """Where it is, or will be once it is built.

        Raises:
            BuildFailed: there is no compiler.
        """
        file = f"{self.name}-{_key(self.units, self.libraries, require_compiler())}.so"
        return (self.folder or cache_folder()) / file

    def build(self) -> Path:
        """Compile the units and link them, unless that is done already.

        Raises:
            BuildFailed: no compiler, or its complaint.
        """
        target = self.path()
        with locked_cache(target.parent) as folder:
            if not target.is_file():
                clear_leftovers(folder)
                _compile(target, require_compiler(), self.units, self.libraries)
        return target


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
            with Bar(f"compiling {target.stem.rpartition('-')[0]}", len(jobs)) as bar:
                for done, job in enumerate(as_completed(jobs), start=1):
                    job.result()
                    bar.update(done)
        whole = Path(scratch) / target.name
        # What the machine and torch define is found when the library is loaded.
        shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        run_compiler([compiler.path, *shared, *map(str, objects), "-o", str(whole), *libraries])
        os.replace(whole, target)


def _key(units: Sequence[Unit], libraries: Sequence[str], compiler: Compiler) -> str:
    digest = hashlib.sha256()
    # Sources may include each other and the headers of csrc, but nothing from further away.
    neighbours = [path for folder in {unit.source.parent for unit in units} for path in folder.iterdir()]
    headers = [*find_sources("simt", ".h"), *find_sources("cuda", ".h")]
    for path in sorted({path for path in [*neighbours, *headers] if path.suffix in _SOURCES}):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    settings = [
        [(unit.source.name, list(unit.flags), unit.compiler) for unit in units],
        list(libraries),
        compiler.version,
    ]
    settings += [torch.__version__, sys.version, sys.platform, platform.machine()]
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:20]
