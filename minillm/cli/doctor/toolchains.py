"""The compilers of the kernels (C++, nvcc), and whether csrc/cuda can run on a GPU or in the simulator.

These checks compile nothing. Checks that need torch run only if torch works.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from minillm.cli.doctor.check import Check
from minillm.toolchain import cuda, cuda_toolkit, sanitizer, simt
from minillm.toolchain.cache import is_whole
from minillm.toolchain.compiler import BuildFailed, find_compiler

GET_COMPILER = "Debian, Ubuntu: apt install g++; macOS: xcode-select --install"


def check_compiler() -> Check:
    """The first C++ compiler that works; the kernels are built with it."""
    compiler = find_compiler()
    if compiler is None:
        return Check("c++ compiler", "missing", "none", GET_COMPILER)
    return Check("c++ compiler", "ok", f"{compiler.path}: {compiler.version}")


def check_nvcc() -> Check:
    """The CUDA compiler; it counts only if its headers exist too."""
    toolkit = cuda_toolkit.find_cuda()
    if toolkit is None:
        return Check("nvcc", "info", "none", "only for building CUDA kernels: install the CUDA toolkit")
    return Check("nvcc", "ok", f"{toolkit / 'bin' / 'nvcc'}: release {cuda_toolkit.nvcc_version(toolkit)}")


def check_cuda_kernels(torch: ModuleType | None) -> Check:
    """csrc/cuda for a real GPU. It needs nvcc to compile and a GPU to run."""
    name = "cuda kernels"
    if torch is None:
        return Check(name, "missing", "unknown", "repair torch first")
    has_gpu = torch.cuda.is_available()
    if cuda_toolkit.find_cuda() is None:
        advice = "to try them on this GPU install the CUDA toolkit, with nvcc"
        return Check(
            name, "missing" if has_gpu else "info", "not compiled: no nvcc", advice if has_gpu else ""
        )
    targets = " ".join(f"sm_{arch}" for arch in cuda.wanted_architectures())
    try:
        where = _built_or_not(cuda.cuda_library().path())
    except (BuildFailed, OSError) as error:
        return Check(name, "missing", f"not compiled: {error}", GET_COMPILER)
    if not has_gpu:
        return Check(name, "info", f"{where}, for {targets}; no GPU here to run them")
    return Check(name, "ok", f'{where}, for {targets}; backend="native" uses them')


def check_simulator(torch: ModuleType | None) -> Check:
    """csrc/cuda on the CPU: whether the simulator is available, and in which flavours."""
    if torch is None:
        return Check("simulator", "missing", "unknown", "repair torch first")
    try:
        machine, kernels = simt.machine_library().path(), simt.ops_library().path()
    except (BuildFailed, OSError) as error:
        return Check("simulator", "missing", f"not compiled: {error}", GET_COMPILER)
    where = _built_or_not(kernels if is_whole(machine) else machine)
    asan = "asan (scripts/sanitize.sh)" if sanitizer.preload() else "no asan (that needs g++ and libasan)"
    return Check("simulator", "ok", f"{where}; flavours fast, check, {asan}")


def _built_or_not(library: Path) -> str:
    return f"compiled: {library}" if is_whole(library) else f"compiled on first use, into {library.parent}"
