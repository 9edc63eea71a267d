"""The simulator's libraries, compiled on first use.

    csrc/simt/*.cpp                 -> simt-<key>.so       the machine, a Python module
    csrc/cuda/**/*.cu, bind.cpp     -> simt-ops-<key>.so   torch.ops.minillm_simt
    any .cu file (+ their headers)  -> <name>-<key>.so     a lab's or a test's kernels

Two kinds of flags, because the machine must not watch itself. Kernels are compiled with -O1, which
leaves nearly every load and store where the source has it: what is counted is what is written there.
Which observer they are compiled for is the flavour's choice (sanitizer.py says what `asan` needs):

    fast, check   the hooks of csrc/simt/hooks.cpp, by way of -fsanitize=thread
    asan          AddressSanitizer and UBSan; no compiler combines the two

    CXX                the compiler, as for the CPU kernels
    MINILLM_SANITIZE   1: the flavour of this process is asan
    addr2line          (binutils, optional) turns an address in a kernel into a line
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

from minillm.ops.building import SANITIZE, BuildFailed, sanitizing, torch_folder
from minillm.ops.linking import BINDING, COMMON, Library, Unit, find_sources, include_flags

MACHINE = [*COMMON, "-O2"]
# DWARF 4: of clang's DWARF 5 binutils 2.40 reads no inlined functions, and so the wrong lines.
KERNEL = [*COMMON, "-x", "c++", "-O1", "-gdwarf-4", "-Wno-unknown-pragmas"]


def machine_library() -> Library:
    """The simulator itself, a Python module named like its file.

    Raises:
        BuildFailed: the sources are not there.
    """
    includes = ["-isystem", str(torch_folder() / "include"), "-isystem", sysconfig.get_paths()["include"]]
    flags = [*MACHINE, "-DMINILLM_MODULE=simt_machine", *includes]
    return Library("simt", [Unit(path, flags) for path in find_sources("simt", ".cpp")])


def ops_library() -> Library:
    """All of csrc/cuda with its torch binding, for CPU tensors.

    Raises:
        BuildFailed: the sources are not there.
    """
    includes, torch_include = include_flags("cuda"), ["-isystem", str(torch_folder() / "include")]
    bound = [*MACHINE, *BINDING, "-DMINILLM_SIMT", *includes, *torch_include]
    units = [Unit(path, bound) for path in find_sources("cuda", ".cpp")]
    units += [Unit(path, [*KERNEL, *_observer(), *includes]) for path in find_sources("cuda", ".cu")]
    libraries = ["-L" + str(torch_folder() / "lib"), "-ltorch_cpu", *_runtime()]
    return Library("simt-ops", units, libraries)


def build_kernels(source: Path, flags: Sequence[str] = (), folder: Path | None = None) -> Path:
    """One .cu file as a library, kept in `folder` or the cache. It may include the headers of csrc/cuda.

    Raises:
        BuildFailed: no compiler, no such file, or the compiler's complaint.
    """
    if not source.is_file():
        raise BuildFailed(f"{source} is not a file")
    unit = Unit(source.resolve(), [*KERNEL, *_observer(), *include_flags("cuda"), *flags])
    return Library(source.stem, [unit], _runtime(), folder).build()


def _observer() -> list[str]:
    """Flags for kernels: what observes each access."""
    if not sanitizing():
        return ["-fsanitize=thread"]
    return [*SANITIZE, "-fno-omit-frame-pointer", "-DSIMT_ASAN"]


def _runtime() -> list[str]:
    """Flags to link kernels with. The hooks are the machine's and need none."""
    return SANITIZE if sanitizing() else []
