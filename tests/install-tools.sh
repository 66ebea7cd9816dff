#!/bin/sh
# Installs what the tests need beside Python, from Debian's packages. Does nothing when all of it is there.
set -eu

[ "$(uname -s)" = Linux ] || exit 0 # the tests that need them are about Linux

packages=""
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }

need strace strace
[ -n "$packages" ] || exit 0

root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "neither root nor sudo here; as root run: apt-get install$packages" >&2
        exit 1
    fi
    root=sudo
fi

$root apt-get update -q
# shellcheck disable=SC2086 # a list of names
$root apt-get install -q -y --no-install-recommends $packages
