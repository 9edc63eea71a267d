#!/usr/bin/env bash
# Runs all checks, the long forms of tests included. It takes much longer than test.sh.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

status=0
bash "$repo/scripts/test.sh" || status=1

minillm_setup test
cd "$repo" || exit 1
printf '\n== pytest, long forms\n'
"$env_python" -m pytest -m slow
slow=$?
[ "$slow" = 0 ] || [ "$slow" = 5 ] || status=1 # 5: no test is marked slow

printf '\n== native kernels under ASan and UBSan\n'
bash "$repo/scripts/sanitize.sh" || status=1

printf '\n== CUDA kernels under ASan and UBSan, in the simulator\n'
bash "$repo/scripts/sanitize.sh" tests/cuda/test_cuda_kernels.py tests/cuda/test_simt_engine.py || status=1

[ "$status" = 0 ] && printf '\nfull_check.sh: all passed\n' || printf '\nfull_check.sh: FAILED\n'
exit "$status"
