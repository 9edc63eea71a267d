#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the image. It makes an environment with torch for the CPU.
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
env_dir=${AUTOGRADER_ENV:-/opt/minillm-env}
torch_index=${MINILLM_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

newest_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

# g++ and binutils: for labs in CUDA, which the simulator compiles. bubblewrap: the sandbox, where it may run.
apt-get update
apt-get install -y g++ binutils python3-venv
apt-get install -y bubblewrap || true
newest_python >/dev/null || apt-get install -y python3.11 python3.11-venv python3.11-dev

"$(newest_python)" -m venv "$env_dir"
"$env_dir/bin/pip" install --no-cache-dir --index-url "$torch_index" "$(grep '^torch' "$source_dir/requirements.txt")"
"$env_dir/bin/pip" install --no-cache-dir -r "$source_dir/requirements.txt"
