"""From csrc to shared libraries: compiled on first use, kept in a cache, found again.

    cpu.py    csrc/cpu                  --+
    simt.py   csrc/simt, csrc/cuda      --+--> Library: units, flags --> <name>-<source key>-<compiler key>.so
    cuda.py   csrc/cuda, for real GPUs  --+      (library.py)               (cache.py)

Three descriptions say what is built from which sources with which flags. One pipeline builds it.

    compiler.py       the C++ compiler: which one, and how it is run
    sources.py        the files of csrc
    torch_files.py    the headers and libraries of torch
    cuda_toolkit.py   where CUDA is
    cache.py          the folder of compiled libraries: lock, digests, leftovers
    library.py        the pipeline: units -> objects -> shared library
    sanitizer.py      ASan and UBSan

setup.py uses this package, too, in an environment with torch and without minillm's other dependencies.
At import nothing here needs more than the standard library.

    variable               value                        effect
    CXX                    a program                    the compiler, not the first of c++, g++, clang++
    CUDA_HOME              a folder                     where CUDA is, if not where nvcc says
    TORCH_CUDA_ARCH_LIST   8.0;9.0                      architectures instead of the GPU that is there
    MINILLM_CACHE          a folder                     where compiled libraries are kept
    MINILLM_CPU_PATH       avx512_bf16, avx2, generic   the CPU kernels to run, instead of the best
    MINILLM_PREBUILD       1                            setup.py compiles ahead of time, into minillm/kernels
    MINILLM_SANITIZE       1                            compile with ASan and UBSan: scripts/sanitize.sh

Left out: Windows. ninja and torch.utils.cpp_extension: a dozen files need neither, and the extension's
cache does not notice another torch, nor a build that was killed.
"""
