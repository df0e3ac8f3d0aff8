#!/usr/bin/env bash
# A Docker Engine for the tests, where none answers yet.
#
#   tools/docker-engine.sh start   nothing to do when one answers; else installs it (Debian, as root) and starts it
#   tools/docker-engine.sh stop    ends the one that this script has started, with its containerd; no other
#
# Its process id and its log are in .cache/docker-engine.
set -euo pipefail

cd "$(dirname "$0")/.."
state=.cache/docker-engine
pid_file=$state/pid

say() { printf '%s\n' "$*"; }
fail() { printf 'docker-engine: %s\n' "$*" >&2; exit 1; }
answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
as_root() { [ "$(id -u)" -eq 0 ] || fail "no Docker Engine answers, and only root can $1"; }
# A process id that was given out again is not ours: its name says so.
running() { [ -s $pid_file ] && [ "$(cat "/proc/$(cat $pid_file)/comm" 2>/dev/null)" = dockerd ]; }

install() {
    local missing=()
    command -v dockerd >/dev/null || missing+=(docker.io)
    command -v iptables >/dev/null || missing+=(iptables)
    if [ ${#missing[@]} -gt 0 ]; then
        as_root "install ${missing[*]}"
        command -v apt-get >/dev/null || fail "install these by hand, there is no apt-get: ${missing[*]}"
        say "installing ${missing[*]}"
        apt_install "${missing[@]}"
    fi
    # Some releases keep the client in a package of its own.
    command -v docker >/dev/null || apt_install docker-cli
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    local log=$state/apt.log
    # Its service would start an engine of its own, where there is something that starts services.
    { apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$@"; } </dev/null >$log 2>&1 ||
        { tail -n 5 $log >&2; fail "apt-get could not install $*"; }
}

start() {
    ! answers || { say "a Docker Engine answers"; return; }
    mkdir -p $state
    install
    ! answers || { say "a Docker Engine answers"; return; }
    as_root "start one"
    setsid dockerd </dev/null >$state/log 2>&1 &
    echo $! >$pid_file
    for _ in $(seq 300); do
        ! answers || { say "started a Docker Engine: process $(cat $pid_file), $state/log"; return; }
        running || break
        sleep 0.2
    done
    tail -n 5 $state/log >&2
    stop
    fail "the engine does not start"
}

stop() {
    running || { rm -f $pid_file; return 0; }
    local pid children
    pid=$(cat $pid_file)
    children=$(cat "/proc/$pid/task/"*/children 2>/dev/null || true) # its containerd
    kill "$pid"
    for _ in $(seq 150); do
        kill -0 "$pid" $children 2>/dev/null || break
        sleep 0.2
    done
    # shellcheck disable=SC2086 # several process ids, or none
    kill -9 "$pid" $children 2>/dev/null || true
    rm -f $pid_file
    say "stopped the Docker Engine"
}

case ${1:-} in start) start ;; stop) stop ;; *) fail "usage: tools/docker-engine.sh start | stop" ;; esac
