"""`CudaOps` whose CUDA runtime is a stand-in (tests/cuda/kernels/runtime_standin.cpp): no kernel runs.

nvcc compiles the kernels to PTX only, which nothing executes, so it is not optimised. The binding, the pass
over a model and the calls of the runtime are the code that runs on a GPU; the tensors are on the CPU.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from minillm.ops.cuda import CudaOps
from minillm.ops.cuda_rungs import HEAD_DIMS
from minillm.toolchain import cuda as toolchain
from minillm.toolchain.compiler import COMMON
from minillm.toolchain.cuda_toolkit import find_cuda, headers
from minillm.toolchain.library import Library, Unit
from minillm.toolchain.sources import SHARED, csrc, find_sources, include_flags
from minillm.toolchain.torch_files import LINK, STABLE, torch_includes, torch_library_folder, torch_version

NAMESPACE = "minillm_standin"
STANDIN = Path(__file__).parents[1] / "cuda" / "kernels" / "runtime_standin.cpp"


@cache
def load() -> ctypes.CDLL:
    """The library, compiled on first use."""
    cuda = find_cuda()
    assert cuda is not None
    includes = include_flags("cuda")
    places = [*includes, *torch_includes(), "-isystem", str(headers(cuda))]
    flags = [*COMMON, "-O2", *STABLE, f"-DMINILLM_NAMESPACE={NAMESPACE}", "-DMINILLM_KEY=CPU"]
    sources = [*find_sources("cuda", ".cpp"), *find_sources(SHARED, ".cpp"), STANDIN]
    units = [Unit(path, flags, places) for path in sources]
    code = [*toolchain.FLAGS, "-gencode=arch=compute_80,code=compute_80", "-Xcicc", "-O0"]
    units += [Unit(path, code, includes, toolchain._nvcc(cuda)) for path in find_sources("cuda", ".cu")]
    # -Bsymbolic: on a machine with CUDA, torch has loaded the true runtime already.
    library = Library(
        "standin",
        units,
        libraries=[*LINK, "-Wl,-Bsymbolic"],
        places=[torch_library_folder()],
        headers=[csrc() / "cuda", csrc() / SHARED],
        versions=[torch_version()],
    )
    path = library.build()
    torch.ops.load_library(str(path))
    found = ctypes.CDLL(str(path))
    found.standin_log.restype = ctypes.c_char_p
    return found


def log() -> list[str]:
    """What the host has asked of the runtime since the last call."""
    said: bytes = load().standin_log()
    lines = said.decode().splitlines()
    load().standin_clear()
    return lines


class StandInOps(CudaOps):
    """`CudaOps` on CPU tensors; results are what memory happens to hold."""

    namespace = NAMESPACE

    def __init__(self, tensor_cores: bool = False) -> None:
        super().__init__()
        self.tensor_cores = tensor_cores

    def _head_dims(self) -> tuple[int, ...]:
        return HEAD_DIMS

    def _load(self) -> str:
        load()
        return NAMESPACE

    def _call(self, op: str, *arguments: Any) -> Any:
        return getattr(self._ops, op).default(*arguments, 0)

    def _launch(self, overload: Any, device: torch.device, *arguments: Any) -> Any:
        return overload(*arguments, 0)
