#!/usr/bin/env bash
# The tests of the native kernels over a build of csrc/cpu with ASan and UBSan: reads and writes outside a
# tensor, overflows, misaligned loads. Arguments replace the tests: bash scripts/sanitize.sh tests/test_native_ops.py
# Python itself is not instrumented, so the sanitizers' runtime is preloaded (libstdc++ behind it, whose
# exceptions it must see), and leaks, of which Python has many at its end, are not looked for.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
minillm_setup test
cd "$repo" || exit 1

compiler=${CXX:-c++}
preload=""
for name in libasan.so libubsan.so libstdc++.so; do
    path=$("$compiler" -print-file-name="$name" 2>/dev/null)
    [ -f "$path" ] || { say "sanitize: $compiler has no $name: skipped"; exit 0; }
    preload="$preload:$path"
done
# The simulator's threads are switched behind the sanitizers' back: they are not asked about it.
[ $# -gt 0 ] || set -- tests/test_native_*.py tests/test_verify_*.py tests/test_invariance.py -k "not simt"

export MINILLM_SANITIZE=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD=${preload#:} exec "$env_python" -m pytest -q "$@"
