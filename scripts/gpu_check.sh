#!/usr/bin/env bash
# Everything a machine with a GPU should do, in one go and under 9 minutes:
#
#     bash scripts/gpu_check.sh OUT_DIR
#
# PYTHON is the interpreter (default python3); it needs a CUDA build of torch, pytest, and what minillm
# depends on. Nothing is installed and nothing is fetched. gpu/gpu_check.py says what is done and written.
set -u
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu/gpu_check.py" "$@"
