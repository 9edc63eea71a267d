#!/usr/bin/env bash
# The tests of the native kernels over a build of csrc/cpu with ASan and UBSan: reads and writes outside a
# tensor, overflows, misaligned loads. Arguments replace the tests; those of the simulator then run its
# flavour asan: bash scripts/sanitize.sh tests/cuda/test_cuda_kernels.py
# minillm/toolchain/sanitizer.py says what such a process needs.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
minillm_setup test
cd "$repo" || exit 1

settings=()
while IFS= read -r setting; do settings+=("$setting"); done < <("$env_python" -m minillm.toolchain.sanitizer)
[ ${#settings[@]} -gt 0 ] || { say "sanitize: the compiler has no sanitizers: skipped"; exit 0; }
# The simulator has runs of its own; here it would be asked once more for verification.
[ $# -gt 0 ] || set -- tests/ops/test_native_*.py tests/ops/test_verify_*.py tests/engine/test_invariance.py -k "not simt"

exec env "${settings[@]}" "$env_python" -m pytest -q "$@"
