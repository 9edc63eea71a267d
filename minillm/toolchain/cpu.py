"""csrc/cpu: the native kernels, in one library for every processor.

    isa.cpp  -- once for each instruction set --+
    other *.cpp ---------------------------------+--> cpu-<key>-<key>.so, torch.ops.minillm

No flag depends on this processor. The library has the kernels for each instruction set and chooses when it
is loaded, so a cache in a shared home directory serves every machine. Without a compiler the reference
backend runs, and a message says so once.
"""

from __future__ import annotations

import platform

from minillm.toolchain.library import Library, Unit
from minillm.toolchain.sanitizer import SANITIZE, sanitizing
from minillm.toolchain.sources import SHARED, csrc, find_sources, include_flags
from minillm.toolchain.torch_files import LINK, STABLE, torch_includes, torch_library_folder, torch_version

FLAGS = (
    "-O3 -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-strict-aliasing "
    "-Wall -Wextra -Wno-psabi -Wno-uninitialized"
).split()
# This file is compiled once for each instruction set; "generic" runs on every machine.
PER_ISA = "isa.cpp"
_AVX512 = ("f", "bw", "vl", "dq", "bf16", "vbmi", "vnni")
ISAS = {  # by the names that MINILLM_CPU_PATH knows
    "avx512_bf16": ["-DMINILLM_ISA_AVX512", *(f"-mavx512{x}" for x in _AVX512), "-mfma"],
    "avx2": ["-DMINILLM_ISA_AVX2", "-mavx2", "-mfma", "-mf16c"],
    "generic": [],
}


def cpu_library() -> Library:
    """The kernels and their torch binding for CPU tensors.

    Raises:
        BuildFailed: the sources are missing.
    """
    observer = SANITIZE if sanitizing() else []
    flags = [*FLAGS, *STABLE, *observer, "-DMINILLM_NAMESPACE=minillm", "-DMINILLM_KEY=CPU"]
    named = f"-ffile-prefix-map={csrc()}=csrc"  # messages then contain paths as in the repository
    places = [named, *include_flags("cpu"), *torch_includes()]
    sources = find_sources("cpu", ".cpp") + find_sources(SHARED, ".cpp")
    per_isa = [source for source in sources if source.name == PER_ISA]
    units = [Unit(source, [*flags, *isa], places) for source in per_isa for isa in _isas().values()]
    units += [Unit(source, flags, places) for source in sources if source not in per_isa]
    return Library(
        "cpu",
        units,
        libraries=[*LINK, *observer],
        places=[torch_library_folder()],
        headers=[csrc() / "cpu", csrc() / SHARED],
        versions=[torch_version()],
    )


def _isas() -> dict[str, list[str]]:
    return ISAS if platform.machine() in ("x86_64", "AMD64") else {"generic": []}
