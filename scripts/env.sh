# Makes the environment minillm runs in, once; the next run only looks at a stamp.
#
#   source scripts/env.sh; minillm_setup [test]    sets $env_dir and $env_python
#   bash scripts/env.sh [test]                     the same, on its own
#
# Which environment:  $PYTHON if it is set (the environment it belongs to, else .venv made from it),
#                     else the active virtual environment, else .venv made from python3.
# Which torch:        one that is already there (2.10 or newer, CPU or CUDA) is kept, in the environment
#                     or in the python that .venv is made from; otherwise exactly $TORCH_TO_INSTALL.
#                     It comes from the index in MINILLM_TORCH_INDEX if that is set, else from pip's own.
#                     The CPU build: MINILLM_TORCH_INDEX=https://download.pytorch.org/whl/cpu
#
# Files of its own, all in $env_dir:
#   .minillm-made    we made this environment (and from which python), so we may rebuild it
#   .minillm-busy    an installation is running, or was killed: what is there cannot be trusted
#   .minillm-stamp   what was installed, from which state of pyproject.toml and setup.py

TORCH_TO_INSTALL="torch==2.13.0"
CPU_INDEX=https://download.pytorch.org/whl/cpu
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# Everything said goes to stderr: stdout belongs to the program that runs afterwards.
say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

minillm_setup() { # minillm_setup [extra]
    env_extra=${1:-}
    choose_environment
    is_ready && return
    # One installation at a time per checkout. The lock is on a file that is there anyway, and the
    # kernel drops it when the last process that holds it ends, however it ends.
    { lock_or_wait; is_ready || make_ready; } 9<"$repo/pyproject.toml"
}

choose_environment() {
    local active=${VIRTUAL_ENV:-}
    [ "${CONDA_DEFAULT_ENV:-base}" = base ] || active=${active:-${CONDA_PREFIX:-}}
    if [ -n "${PYTHON:-}" ]; then
        active=$(environment_of "$PYTHON") || die "PYTHON=$PYTHON does not run"
    fi
    env_dir=${active:-$repo/.venv}
    [ ! "$env_dir" -ef "$repo/.venv" ] || env_dir=$repo/.venv
    env_python=$env_dir/bin/python
    [ "$env_dir" = "$repo/.venv" ] || [ -x "$env_python" ] || die "$env_dir is active but has no bin/python: deactivate it"
    [ "$env_dir" != "$repo/.venv" ] || choose_base_python
}

environment_of() { # prints the virtual environment a python belongs to, or nothing
    "$1" -c 'import sys; print("" if getattr(sys, "base_prefix", sys.prefix) == sys.prefix else sys.prefix)' 2>/dev/null
}

choose_base_python() { # the python that .venv is made from
    base_python=$(command -v "${PYTHON:-python3}") ||
        die "no python3 found: install Python 3.11 or newer, or set PYTHON=/path/to/python3"
    case $base_python in
    "$env_dir"/*) base_python=$(cat "$env_dir/.minillm-made" 2>/dev/null) ;; # .venv is active: not made from itself
    /*) ;;
    *) base_python=$PWD/$base_python ;;
    esac
}

# --- is it there already? ---------------------------------------------------------------------------

stamp_key() { # the path is part of it: an editable install points at one checkout
    (cd "$repo" && cksum pyproject.toml setup.py && pwd -P)
}

is_ready() {
    local stamp key
    key=$(stamp_key)
    stamp=$(cat "$env_dir/.minillm-stamp" 2>/dev/null) || return 1
    # An environment made for the tests holds all that the demo needs.
    [ "$stamp" = "$key extra=$env_extra" ] || [ "$stamp" = "$key extra=test" ] || return 1
    is_chosen_python && has_modules
}

is_chosen_python() { # a .venv that we made from another python than $PYTHON is not the one asked for
    [ -n "${PYTHON:-}" ] && [ -e "$env_dir/.minillm-made" ] && [ "$env_dir" = "$repo/.venv" ] || return 0
    [ "$(cat "$env_dir/.minillm-made")" = "$base_python" ]
}

has_modules() { # looks without importing: torch alone takes seconds to import
    "$env_python" -P - "$repo" 2>/dev/null <<'PY'
import importlib.util, os, sys
found = importlib.util.find_spec("minillm")
here = found and os.path.realpath(found.origin or "") == os.path.realpath(sys.argv[1] + "/minillm/__init__.py")
sys.exit(not (here and importlib.util.find_spec("torch")))
PY
}

# --- torch: keep or install? ------------------------------------------------------------------------

torch_version() { # prints the torch that pip would see, whatever its age; fails if there is none
    "$1" -P -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null
}

new_enough() { # new_enough PYTHON VERSION: 2.10 or newer, as pip orders versions (2.10.0a0 comes before 2.10)
    "$1" - "$2" <<'PY'
import re, sys
match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(a|b|rc|\.dev)?", sys.argv[1])
release = match and (int(match[1]), int(match[2]), int(match[3] or 0), match[4] is None)
sys.exit(not (release and release >= (2, 10, 0, True)))
PY
}

torch_to_keep() { # prints the version of a torch worth keeping: new enough, and it can be imported
    local version
    version=$(torch_version "$1") && new_enough "$1" "$version" &&
        "$1" -P -c 'import torch' >/dev/null 2>&1 && printf '%s\n' "$version"
}

# --- making it --------------------------------------------------------------------------------------

lock_or_wait() {
    command -v flock >/dev/null || return 0 # not on macOS: two set-ups at once are not caught there
    flock -n 9 || { say "another set-up of this checkout is running: waiting for it"; flock 9; }
}

make_ready() {
    local extras=${env_extra:+[$env_extra]} pin=$env_dir/.minillm-torch.txt
    [ "$env_dir" != "$repo/.venv" ] || make_venv
    require_python "$env_python"
    "$env_python" -c 'import pip' 2>/dev/null || die "$env_dir has no pip: run $env_python -m ensurepip"
    : >"$env_dir/.minillm-busy"
    install_torch
    printf 'torch==%s\n' "$(torch_version "$env_python")" >"$pin"
    step "installing minillm$extras" pip_install -c "$pin" -e "$repo$extras"
    rm -f "$env_dir/.minillm-busy"
    has_modules || die "minillm or torch cannot be found in $env_dir after installing: remove it and run this again"
    printf '%s extra=%s\n' "$(stamp_key)" "$env_extra" >"$env_dir/.minillm-stamp"
}

make_venv() {
    local flags=() torch
    rm -rf "$repo/.venv.old"
    venv_is_usable && return
    require_python "$base_python"
    "$base_python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$base_python lacks venv or ensurepip: install them (Debian, Ubuntu: apt install python3-venv), or set PYTHON"
    clear_venv
    mkdir "$env_dir"
    printf '%s\n' "$base_python" >"$env_dir/.minillm-made"
    : >"$env_dir/.minillm-busy"
    if torch=$(torch_to_keep "$base_python"); then
        say "keeping torch $torch of $base_python"
        flags=(--system-site-packages)
    fi
    # (bash before 4.4 takes an empty array for an unset variable)
    step "making .venv from $base_python" "$base_python" -m venv ${flags[@]+"${flags[@]}"} "$env_dir"
}

venv_is_usable() {
    "$env_python" -c 'import pip' 2>/dev/null && is_chosen_python &&
        ! { [ -e "$env_dir/.minillm-made" ] && [ -e "$env_dir/.minillm-busy" ]; }
}

clear_venv() { # removes a broken .venv, if it is ours; renamed first, so that being killed here is harmless
    rmdir "$env_dir" 2>/dev/null
    [ -e "$env_dir" ] || [ -L "$env_dir" ] || return 0
    [ -e "$env_dir/.minillm-made" ] || die "$env_dir is not a working environment and not made by this script: remove it"
    say "rebuilding .venv (it is half made, or made from another python)"
    mv "$env_dir" "$repo/.venv.old" && rm -rf "$repo/.venv.old"
}

require_python() {
    local version
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null) ||
        die "minillm needs Python 3.11 or newer and $1 is ${version:-not working}: set PYTHON=/path/to/python3"
}

install_torch() {
    local found
    if found=$(torch_to_keep "$env_python"); then
        say "keeping torch $found"
        return
    fi
    if found=$(torch_version "$env_python"); then
        new_enough "$env_python" "$found" &&
            die "torch $found in $env_dir cannot be imported ($env_python -c 'import torch' says why): repair or remove it"
        say "torch $found is too old: replacing it"
    fi
    announce_download
    # For torch alone: what minillm itself needs comes from pip's own index.
    step "installing $TORCH_TO_INSTALL" \
        pip_install ${MINILLM_TORCH_INDEX:+--index-url "$MINILLM_TORCH_INDEX"} "$TORCH_TO_INSTALL"
}

announce_download() { # how much is about to be downloaded, as far as that can be known before pip asks its index
    if [ -n "${MINILLM_TORCH_INDEX:-}" ]; then
        say "about to download $TORCH_TO_INSTALL from MINILLM_TORCH_INDEX=$MINILLM_TORCH_INDEX"
        say "a CPU build is about 0.2 GB; a build with CUDA libraries takes several GB"
    elif [ "$(uname -s)" = Linux ]; then
        say "about to download $TORCH_TO_INSTALL from pip's own index"
        say "if that is PyPI, CUDA libraries of about 5.5 GB come with it (its x86-64 build has them)"
        nvidia-smi -L >/dev/null 2>&1 || say "no NVIDIA GPU was found here: the CPU build, about 0.2 GB, is enough"
        say "for the CPU build stop this (Ctrl-C) and run it again with MINILLM_TORCH_INDEX=$CPU_INDEX"
    else
        say "about to download $TORCH_TO_INSTALL from pip's own index: about 0.2 GB if that is PyPI"
    fi
}

pip_install() { # a user's own pip settings count, except the one that no virtual environment can follow
    PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 "$env_python" -m pip install "$@"
}

step() { # step WHAT COMMAND...: one line, the output into a log; shown when it fails
    local what=$1 log=$env_dir/.minillm-setup.log started=$SECONDS ticker="" status=0
    shift
    say "$what"
    if [ -t 2 ]; then
        show_progress "$log" "$started" &
        ticker=$!
    fi
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ -n "$ticker" ]; then
        kill "$ticker" 2>/dev/null
        wait "$ticker" 2>/dev/null
        printf '\r\033[K' >&2
    fi
    [ "$status" = 0 ] && return
    # A pip that failed has tidied up after itself: the environment is incomplete, but not suspect.
    [ ! -x "$env_python" ] || rm -f "$env_dir/.minillm-busy"
    tail -n 15 "$log" >&2
    die "$what: failed (the whole log: $log)"
}

show_progress() { # the seconds and the last line of the log, on one line that is overwritten
    while sleep 1 && kill -0 $$ 2>/dev/null; do
        printf '\r  %3d s  %.70s\033[K' "$((SECONDS - $2))" "$(tail -n 1 "$1")" >&2
    done
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -u
    minillm_setup "$@"
    say "ready: $env_dir"
fi
