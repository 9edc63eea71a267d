"""The simulator's libraries.

    csrc/simt/*.cpp                 -> simt-<key>-<key>.so       the simulator, a Python module
    csrc/cuda/*.cu, bind.cpp        -> simt-ops-<key>-<key>.so   torch.ops.minillm_simt
    any .cu file (+ csrc/cuda/*.h)  -> <name>-<key>-<key>.so     the kernels of a lab or a test

The simulator itself is compiled without instrumentation. Kernels are compiled with -O1, which keeps nearly
every load and store of the source, so the counters match the source. The instrumentation of kernels depends
on the flavour (sanitizer.py describes the environment for `asan`):

    fast, check   the hooks of csrc/simt/hooks.cpp, through -fsanitize=thread
    asan          AddressSanitizer and UBSan; compilers cannot combine them with -fsanitize=thread

addr2line (binutils, optional) turns an address in a kernel into a line.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from minillm.toolchain.compiler import COMMON, BuildFailed
from minillm.toolchain.library import Library, Unit
from minillm.toolchain.sanitizer import SANITIZE, sanitizing
from minillm.toolchain.sources import SHARED, csrc, find_sources, include_flags
from minillm.toolchain.torch_files import LINK, STABLE, torch_includes, torch_library_folder, torch_version

MACHINE = [*COMMON, "-O2"]
# The binding for the simulator (csrc/shared/tensors.h).
DEFINED = ["-DMINILLM_NAMESPACE=minillm_simt", "-DMINILLM_KEY=CPU", "-DMINILLM_SIMT"]
# DWARF 4: binutils 2.40 cannot read inlined functions in clang's DWARF 5, and reports wrong lines.
KERNEL = [*COMMON, "-x", "c++", "-O1", "-gdwarf-4", "-Wno-unknown-pragmas"]


def machine_library() -> Library:
    """The simulator itself, a Python module.

    Raises:
        BuildFailed: the sources are missing.
    """
    flags = [*MACHINE, "-DMINILLM_MODULE=simt_machine"]
    places = [*include_flags("simt"), *torch_includes(), "-isystem", sysconfig.get_paths()["include"]]
    units = [Unit(path, flags, places) for path in find_sources("simt", ".cpp")]
    return Library("simt", units, headers=_headers(), versions=[torch_version(), sys.version])


def ops_library() -> Library:
    """All of csrc/cuda with its torch binding, for CPU tensors.

    Raises:
        BuildFailed: the sources are missing.
    """
    bound, includes = [*MACHINE, *STABLE, *DEFINED], include_flags("cuda")
    sources = find_sources("cuda", ".cpp") + find_sources(SHARED, ".cpp")
    units = [Unit(path, bound, [*includes, *torch_includes()]) for path in sources]
    units += [kernel_unit(path) for path in find_sources("cuda", ".cu")]
    return Library(
        "simt-ops",
        units,
        libraries=[*LINK, *_runtime()],
        places=[torch_library_folder()],
        headers=_headers(),
        versions=[torch_version()],
    )


def build_kernels(source: Path, flags: Sequence[str] = (), folder: Path | None = None) -> Path:
    """Compile one .cu file into a library in `folder` or the cache. It may include headers of csrc/cuda.

    Raises:
        BuildFailed: there is no compiler or no such file, or the compiler fails.
    """
    if not source.is_file():
        raise BuildFailed(f"{source} is not a file")
    unit = kernel_unit(source.resolve(), flags)
    return Library(source.stem, [unit], _runtime(), headers=_headers(), folder=folder).build()


def kernel_unit(source: Path, flags: Sequence[str] = ()) -> Unit:
    """How a kernel's file is compiled in the flavours of this process; `flags` come last."""
    return Unit(source, [*KERNEL, *_observer(), *flags], include_flags("cuda"))


def _observer() -> list[str]:
    """Flags for the instrumentation of kernels."""
    if not sanitizing():
        return ["-fsanitize=thread"]
    return [*SANITIZE, "-fno-omit-frame-pointer", "-DSIMT_ASAN"]


def _headers() -> list[Path]:
    return [csrc() / name for name in ("simt", "cuda", SHARED)]


def _runtime() -> list[str]:
    """Link flags of kernels. The hooks need none: the simulator's library defines them."""
    return SANITIZE if sanitizing() else []
