#!/bin/sh
# Installs what the benchmarks measure against, from Debian's packages. Does nothing when all of it is there.
set -eu

packages=""
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }

need redis-server redis-server
need memcached memcached
need gcc "gcc libc6-dev"
need openssl openssl
[ -n "$packages" ] || exit 0

root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "neither root nor sudo here; as root run: apt-get install$packages" >&2
        exit 1
    fi
    root=sudo
fi

# Debian starts a daemon as soon as it is installed; the benchmarks start their own, on free ports.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
fi

$root apt-get update -q
# shellcheck disable=SC2086 # a list of names
$root apt-get install -q -y --no-install-recommends $packages
