#!/usr/bin/env bash
# Runs the tests of the native kernels with csrc/cpu compiled with ASan and UBSan, which find accesses outside a
# tensor, overflows and misaligned loads. Arguments replace the list of tests. Tests of the simulator then run its
# flavour asan: bash scripts/sanitize.sh tests/cuda/test_cuda_kernels.py
# minillm/toolchain/sanitizer.py describes the environment.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
minillm_setup test
cd "$repo" || exit 1

settings=()
while IFS= read -r setting; do settings+=("$setting"); done < <("$env_python" -m minillm.toolchain.sanitizer)
[ ${#settings[@]} -gt 0 ] || { say "sanitize: the compiler has no sanitizers: skipped"; exit 0; }
# "not simt": full_check.sh runs the simulator's tests separately.
[ $# -gt 0 ] || set -- tests/ops/test_native_*.py tests/ops/test_verify_*.py tests/engine/test_invariance.py \
    tests/engine/test_quantized.py tests/engine/test_kv_dtype.py tests/model/test_stored_quantized.py -k "not simt"

# One process a core: a report of ASan ends that process, and pytest says which test it ran. Kernels have one thread,
# except in tests that are about threads: those set their number (test_any_number_of_threads and others).
exec env "${settings[@]}" OMP_NUM_THREADS=1 "$env_python" -m pytest -q -n auto --dist worksteal "$@"
