#!/usr/bin/env bash
# Runs all checks, the long forms of tests included: more than 100 minutes on two cores. Prints the time of each
# part when it ends, and all of them at the end.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
minillm_setup test
cd "$repo" || exit 1

summary=""
status=0
part() { # part NAME COMMAND...
    local name=$1 started=$SECONDS result=ok time
    shift
    printf '\n== %s\n' "$name"
    "$@" || { result=FAILED; status=1; }
    time=$(printf '%d min %02d s' "$(((SECONDS - started) / 60))" "$(((SECONDS - started) % 60))")
    printf '== %s: %s, %s\n' "$name" "$result" "$time"
    summary+=$(printf '\n  %-58s %-8s %s' "$name" "$result" "$time")
}

# Tests that wait for compilers and simulated threads share the cores: one process a core, one thread each.
part "test.sh" bash "$repo/scripts/test.sh"
part "pytest, long forms" env OMP_NUM_THREADS=1 "$env_python" -m pytest -m slow -n auto --dist worksteal
part "every solution of the labs' corpus" \
    env OMP_NUM_THREADS=1 "$env_python" -m pytest -n auto tests/labs/test_corpus.py --corpus
part "native kernels under ASan and UBSan" bash "$repo/scripts/sanitize.sh"
part "CUDA kernels under ASan and UBSan, in the simulator" \
    bash "$repo/scripts/sanitize.sh" tests/cuda/test_cuda_kernels.py tests/cuda/test_cuda_families.py \
    tests/cuda/test_cuda_experts.py tests/cuda/test_cuda_pass.py tests/cuda/test_cuda_buckets.py \
    tests/cuda/test_simt_engine.py tests/cuda/test_cuda_quantized.py tests/cuda/test_cuda_kv8.py \
    tests/cuda/test_simt_quantized.py tests/cuda/test_simt_kv8.py

printf '\nfull_check.sh, %d min in all:%s\n' "$((SECONDS / 60))" "$summary"
[ "$status" = 0 ] && printf 'full_check.sh: all passed\n' || printf 'full_check.sh: FAILED\n'
exit "$status"
