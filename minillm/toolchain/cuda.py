"""csrc/cuda for a GPU: nvcc compiles the kernels, the C++ compiler the binding, into one library.

    *.cu -- nvcc --> objects for each architecture --+
    bind.cpp -- c++ ---------------------------------+--> cuda-<key>-<key>.so, torch.ops.minillm_cuda

Compiling needs neither a GPU nor a CUDA build of torch; running needs both. The CUDA runtime is linked
statically, so the library also loads without a driver; then the first launch fails.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from minillm.toolchain.compiler import COMMON, BuildFailed, Compiler
from minillm.toolchain.cuda_toolkit import find_cuda, headers, nvcc_version, runtime_folder
from minillm.toolchain.library import Library, Unit
from minillm.toolchain.sources import SHARED, csrc, find_sources, include_flags
from minillm.toolchain.torch_files import LINK, STABLE, torch_includes, torch_library_folder, torch_version

ARCHITECTURES = ("75", "80", "90")
# -fmad=false: a fused multiply-add is written fmaf in the source (reason: csrc/cuda/common/dialect.h).
FLAGS = ["-x", "cu", "-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC"]
# The binding for CUDA tensors (csrc/shared/tensors.h).
DEFINED = ["-DMINILLM_NAMESPACE=minillm_cuda", "-DMINILLM_KEY=CUDA", "-DMINILLM_ON_CUDA"]
RUNTIME = ["-lcudart_static", "-lrt", "-ldl", "-lpthread"]


def wanted_architectures() -> list[str]:
    """The architectures of TORCH_CUDA_ARCH_LIST, else of this machine's GPU, else all that are tested.

    A GPU of sm_90 gets code for sm_90a: only that has wgmma.
    """
    import torch

    named = re.findall(r"(\d+)\.(\d+a?)", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    if named:
        return [major + minor for major, minor in named]
    if torch.cuda.is_available():
        name = "{}{}".format(*torch.cuda.get_device_capability())
        return ["90a" if name == "90" else name]
    return list(ARCHITECTURES)


def cuda_library() -> Library:
    """The kernels and their torch binding for CUDA tensors.

    Raises:
        BuildFailed: there is no nvcc, or the sources are missing.
    """
    cuda = find_cuda()
    if cuda is None:
        raise BuildFailed("there is no CUDA toolkit (nvcc and its headers)")
    bound, includes = [*COMMON, "-O2", *STABLE, *DEFINED], include_flags("cuda")
    places = [*includes, *torch_includes(), "-isystem", str(headers(cuda))]
    nvcc, code = _nvcc(cuda), _code(wanted_architectures())
    sources = find_sources("cuda", ".cpp") + find_sources(SHARED, ".cpp")
    units = [Unit(path, bound, places) for path in sources]
    units += [Unit(path, [*FLAGS, *code], includes, nvcc) for path in find_sources("cuda", ".cu")]
    return Library(
        "cuda",
        units,
        libraries=[*LINK, *RUNTIME],
        places=[torch_library_folder(), f"-L{runtime_folder(cuda)}"],
        headers=[csrc() / "cuda", csrc() / SHARED, csrc() / "simt"],
        versions=[torch_version()],
    )


def compile_command(cuda: Path, source: Path, target: Path, architectures: Sequence[str]) -> list[str]:
    """The nvcc command that makes an object file with SASS for each architecture."""
    unit = Unit(source, [*FLAGS, *_code(architectures)], include_flags("cuda"))
    return [_nvcc(cuda).path, *unit.arguments(target)]


def _nvcc(cuda: Path) -> Compiler:
    return Compiler(str(cuda / "bin" / "nvcc"), f"nvcc {nvcc_version(cuda)}")


def _code(architectures: Sequence[str]) -> list[str]:
    return [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
