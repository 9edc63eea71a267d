"""From csrc to shared libraries: compiled on first use and kept in a cache.

    cpu.py    csrc/cpu                  --+
    simt.py   csrc/simt, csrc/cuda      --+--> Library: units, flags --> <name>-<source key>-<compiler key>.so
    cuda.py   csrc/cuda, for real GPUs  --+      (library.py)               (cache.py)

These three files describe the libraries: sources and flags. One pipeline builds them all.

    compiler.py       finds and runs the C++ compiler
    sources.py        the files of csrc
    torch_files.py    the headers and libraries of torch
    cuda_toolkit.py   finds CUDA
    cache.py          the folder of compiled libraries: lock, digests, leftovers
    library.py        the pipeline: units -> objects -> shared library
    sanitizer.py      ASan and UBSan
    python.py         another Python process that runs a module of minillm

setup.py uses this package too, in an environment with torch but without minillm's other dependencies. At
import the package needs only the standard library.

    variable               value                        effect
    CXX                    a program                    the compiler (default: first of c++, g++, clang++)
    CUDA_HOME              a folder                     the folder of CUDA, instead of the one nvcc is in
    TORCH_CUDA_ARCH_LIST   8.0;9.0                      architectures, instead of this machine's GPU
    MINILLM_CACHE          a folder                     the folder of compiled libraries
    MINILLM_CPU_PATH       avx512_bf16, avx2, generic   the CPU kernels to run, instead of the best ones
    MINILLM_PREBUILD       1                            setup.py compiles ahead of time, into minillm/kernels
    MINILLM_SANITIZE       1                            compile with ASan and UBSan: scripts/sanitize.sh

Left out: Windows; ninja and torch.utils.cpp_extension. A dozen files do not need them, and the extension's
cache does not notice a different torch or an interrupted build.
"""
