"""The simulator's libraries.

    csrc/simt/*.cpp                 -> simt-<key>-<key>.so       the machine, a Python module
    csrc/cuda/*.cu, bind.cpp        -> simt-ops-<key>-<key>.so   torch.ops.minillm_simt
    any .cu file (+ csrc/cuda/*.h)  -> <name>-<key>-<key>.so     a lab's or a test's kernels

Two kinds of flags, because the machine must not watch itself. Kernels are compiled with -O1, which
leaves nearly every load and store where the source has it: what is counted is what is written there.
Which observer they are compiled for is the flavour's choice (sanitizer.py says what `asan` needs):

    fast, check   the hooks of csrc/simt/hooks.cpp, by way of -fsanitize=thread
    asan          AddressSanitizer and UBSan; no compiler combines the two

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
from minillm.toolchain.sources import csrc, find_sources, include_flags
from minillm.toolchain.torch_files import LINK, STABLE, torch_includes, torch_library_folder, torch_version

MACHINE = [*COMMON, "-O2"]
# DWARF 4: of clang's DWARF 5 binutils 2.40 reads no inlined functions, and so the wrong lines.
KERNEL = [*COMMON, "-x", "c++", "-O1", "-gdwarf-4", "-Wno-unknown-pragmas"]


def machine_library() -> Library:
    """The simulator itself, a Python module named like its file.

    Raises:
        BuildFailed: the sources are not there.
    """
    flags = [*MACHINE, "-DMINILLM_MODULE=simt_machine"]
    places = [*include_flags("simt"), *torch_includes(), "-isystem", sysconfig.get_paths()["include"]]
    units = [Unit(path, flags, places) for path in find_sources("simt", ".cpp")]
    return Library("simt", units, headers=_headers(), versions=[torch_version(), sys.version])


def ops_library() -> Library:
    """All of csrc/cuda with its torch binding, for CPU tensors.

    Raises:
        BuildFailed: the sources are not there.
    """
    bound, includes = [*MACHINE, *STABLE, "-DMINILLM_SIMT"], include_flags("cuda")
    units = [Unit(path, bound, [*includes, *torch_includes()]) for path in find_sources("cuda", ".cpp")]
    units += [_kernel(path) for path in find_sources("cuda", ".cu")]
    return Library(
        "simt-ops",
        units,
        libraries=[*LINK, *_runtime()],
        places=[torch_library_folder()],
        headers=_headers(),
        versions=[torch_version()],
    )


def build_kernels(source: Path, flags: Sequence[str] = (), folder: Path | None = None) -> Path:
    """One .cu file as a library, kept in `folder` or the cache. It may include the headers of csrc/cuda.

    Raises:
        BuildFailed: no compiler, no such file, or the compiler's complaint.
    """
    if not source.is_file():
        raise BuildFailed(f"{source} is not a file")
    unit = _kernel(source.resolve(), flags)
    return Library(source.stem, [unit], _runtime(), headers=_headers(), folder=folder).build()


def _kernel(source: Path, flags: Sequence[str] = ()) -> Unit:
    return Unit(source, [*KERNEL, *_observer(), *flags], include_flags("cuda"))


def _observer() -> list[str]:
    """Flags for kernels: who is told of each access."""
    if not sanitizing():
        return ["-fsanitize=thread"]
    return [*SANITIZE, "-fno-omit-frame-pointer", "-DSIMT_ASAN"]


def _headers() -> list[Path]:
    return [csrc() / "simt", csrc() / "cuda"]


def _runtime() -> list[str]:
    """Flags to link kernels with. The hooks are the machine's and need none."""
    return SANITIZE if sanitizing() else []
