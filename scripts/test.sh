#!/usr/bin/env bash
# Sets up the environment (once), then runs lint, format, types, imports and tests. All of them run in every case;
# if any fails, the exit code is 1. Arguments are passed to pytest, with paths relative to the repository:
# bash scripts/test.sh tests/cli/test_doctor.py -x
set -u
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
minillm_setup test
cd "$repo" || exit 1
export PATH="$env_dir/bin:$PATH" # tests run `minillm` and build tools by name

failed=""
check() { # check NAME COMMAND...
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed="$failed, $name"
}

check "ruff check" "$env_python" -m ruff check .
check "ruff format" "$env_python" -m ruff format --check .
check "mypy" "$env_python" -m mypy
check "imports" "$env_dir/bin/lint-imports" --no-logo
# Without arguments: all tests, one process per core with one thread each. More threads than cores would be slow.
if [ $# = 0 ]; then
    check "pytest" env OMP_NUM_THREADS=1 "$env_python" -m pytest -n auto --dist worksteal
else
    check "pytest" "$env_python" -m pytest "$@"
fi

if [ -n "$failed" ]; then
    printf '\ntest.sh: FAILED: %s\n' "${failed#, }"
    exit 1
fi
printf '\ntest.sh: all passed (ruff check, ruff format, mypy, imports, pytest)\n'
