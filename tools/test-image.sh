#!/usr/bin/env bash
# The image that the tests of containers use: Debian with Python, built with debootstrap from the mirror that this
# machine's apt uses. No registry is asked. Nothing to do when it is there and was built by this very script.
set -euo pipefail

cd "$(dirname "$0")/.."
image=gleitzeit-test-python:latest
label=gleitzeit.test-image

say() { printf '%s\n' "$*"; }
fail() { printf 'test-image: %s\n' "$*" >&2; exit 1; }

command -v docker >/dev/null || fail "there is no docker command: tools/docker-engine.sh start"
timeout 10 docker version >/dev/null 2>&1 || fail "no Docker Engine answers: tools/docker-engine.sh start"

made=$(sha256sum "tools/$(basename "$0")" | cut -c 1-16)
if [ "$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" $image 2>/dev/null)" = "$made" ]; then
    say "$image is there"
    exit 0
fi

before=$(docker image inspect --format '{{.Id}}' $image 2>/dev/null || true)
[ "$(id -u)" -eq 0 ] || fail "debootstrap needs root"
if ! command -v debootstrap >/dev/null; then
    say "installing debootstrap"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap; } </dev/null >/dev/null ||
        fail "apt-get could not install debootstrap"
fi

suite=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v suite="$suite" '$1 == suite && $2 == "main" { print $3; exit }')
[ -n "$mirror" ] || fail "apt on this machine names no mirror for ${suite:-its release}"
proxy=$(apt-config dump --format '%v%n' Acquire::http::Proxy)
[ -z "$proxy" ] || [ "$proxy" = DIRECT ] || export http_proxy="$proxy"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
say "building $image: $suite with python3, about 40 s"
debootstrap --variant=minbase --include=python3 "$suite" "$root/image" "$mirror" </dev/null >"$root/log" 2>&1 ||
    { tail -n 5 "$root/log" >&2; fail "debootstrap could not"; }
rm -rf "$root/image/var/cache/apt" "$root/image/var/lib/apt/lists" "$root/image/usr/share/doc" "$root/image/usr/share/locale"
ln -s python3 "$root/image/usr/bin/python" # as in the usual images of Python
tar -C "$root/image" --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* -c . |
    docker import --change 'CMD ["python3"]' --change "LABEL $label=$made" - $image >/dev/null
[ -z "$before" ] || docker rmi "$before" >/dev/null 2>&1 || true # still in use: the engine's own to remove
say "$image is built"
