#!/usr/bin/env bash
# Sets up the environment (once) and lets the shipped model continue a story. Arguments go to `minillm generate`:
#   bash scripts/demo.sh -p "The dragon" --temperature 0.7
set -u
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
minillm_setup
exec "$env_dir/bin/minillm" generate -p "Once upon a time" "$@"
