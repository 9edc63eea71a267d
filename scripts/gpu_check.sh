#!/usr/bin/env bash
# All checks that need a GPU, in one run of less than 9 minutes:
#
#     bash scripts/gpu_check.sh OUT_DIR
#
# PYTHON is the interpreter (default: python3). It needs a CUDA build of torch, pytest, and minillm's dependencies.
# Nothing is installed or downloaded. gpu/gpu_check.py describes the steps and the files it writes.
set -u
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu/gpu_check.py" "$@"
