#!/usr/bin/env bash
# Everything a machine with a GPU should do, in one go and under 9 minutes:
#
#     bash scripts/gpu_check.sh OUT_DIR
#
#   OUT_DIR/build.log      nvcc over csrc/cuda for the GPU that is there, and the torch binding
#   OUT_DIR/tests.log      every test marked gpu: kernels on CUDA tensors against float64, a model end to end
#   OUT_DIR/sanitizer.log  the attention kernels under compute-sanitizer (memcheck, racecheck), where it runs
#   OUT_DIR/bench.json     kernels beside torch's SDPA backends and cuBLAS, and a model end to end
#   OUT_DIR/status         one line per step: ok, FAILED or skipped
#
# PYTHON is the interpreter (default python3); it needs a CUDA build of torch, pytest and this checkout.
# Steps go on after a failure; the exit code is 1 if any failed. Clocks are left as they are.
set -u
out=${1:?usage: gpu_check.sh OUT_DIR}
mkdir -p "$out" && out=$(cd "$out" && pwd -P) || exit 1
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
: >"$out/status"
failed=0

step() { # step NAME SECONDS COMMAND...: output to NAME.log
    local name=$1 seconds=$2 code
    shift 2
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
    code=$?
    [ "$code" = 0 ] && echo "$name ok" >>"$out/status" || { echo "$name FAILED ($code)" >>"$out/status"; failed=1; }
    tail -n 1 "$out/status"
    return "$code"
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo "gpu_check.sh: torch sees no GPU here" >&2; exit 1; }

step build 150 "$python" -c 'from minillm.ops.cuda import load_library; print(load_library().name)' || exit 1
step tests 150 "$python" -m pytest -q -m gpu tests
if command -v compute-sanitizer >/dev/null && compute-sanitizer true >/dev/null 2>&1; then
    for tool in memcheck racecheck; do
        step "sanitizer-$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$python" scripts/gpu_bench.py --one-of-each
    done
else
    echo "sanitizer skipped: compute-sanitizer is not there or does not run here" >>"$out/status"
fi
step bench 120 "$python" scripts/gpu_bench.py --out "$out/bench.json"

cat "$out/status"
exit "$failed"
