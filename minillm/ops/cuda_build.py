"""csrc/cuda for a real GPU: nvcc for the kernels, the C++ compiler for the binding, one library.

    *.cu -- nvcc --> objects for each architecture --+
    bind.cpp -- c++ ----------------------------------+--> cuda-<key>.so, torch.ops.minillm_cuda

Compiling needs no GPU and no CUDA build of torch; running needs both. The CUDA runtime is linked in, so
the library loads where there is no driver and fails at the first launch instead.

    CUDA_HOME               where CUDA is, if not where nvcc says
    TORCH_CUDA_ARCH_LIST    "8.0;9.0": architectures instead of the GPU that is there
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from minillm.ops.building import BuildFailed, torch_folder
from minillm.ops.cuda_toolkit import find_cuda, headers, runtime_folder
from minillm.ops.linking import BINDING, COMMON, Library, Unit, find_sources, include_flags

ARCHITECTURES = ("75", "80", "90")
# -fmad=false: what is to be fused is written fmaf (csrc/cuda/common/dialect.h says why).
FLAGS = ["-x", "cu", "-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC"]


def compile_command(cuda: Path, source: Path, target: Path, architectures: Sequence[str]) -> list[str]:
    """The call of nvcc that makes an object file with SASS for each architecture."""
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    return [
        str(cuda / "bin" / "nvcc"),
        *FLAGS,
        *include_flags("cuda"),
        *code,
        "-c",
        str(source),
        "-o",
        str(target),
    ]


def wanted_architectures() -> list[str]:
    """Those of TORCH_CUDA_ARCH_LIST, else of the GPU that is there, else all we test."""
    named = re.findall(r"(\d+)\.(\d+)", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    if named:
        return [major + minor for major, minor in named]
    if torch.cuda.is_available():
        return ["{}{}".format(*torch.cuda.get_device_capability())]
    return list(ARCHITECTURES)


def cuda_library() -> Library:
    """The kernels and their torch binding for CUDA tensors.

    Raises:
        BuildFailed: there is no nvcc, or no sources.
    """
    cuda = find_cuda()
    if cuda is None:
        raise BuildFailed("there is no CUDA toolkit (nvcc and its headers)")
    nvcc = str(cuda / "bin" / "nvcc")
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in wanted_architectures()]
    includes = ["-isystem", str(torch_folder() / "include"), "-isystem", str(headers(cuda))]
    own = include_flags("cuda")
    units = [Unit(path, [*COMMON, "-O2", *BINDING, *own, *includes]) for path in find_sources("cuda", ".cpp")]
    units += [Unit(path, [*FLAGS, *own, *code], nvcc) for path in find_sources("cuda", ".cu")]
    libraries = [
        "-L" + str(torch_folder() / "lib"),
        "-ltorch_cpu",
        f"-L{runtime_folder(cuda)}",
        "-lcudart_static",
        "-lrt",
    ]
    return Library("cuda", units, [*libraries, "-ldl", "-lpthread"])
