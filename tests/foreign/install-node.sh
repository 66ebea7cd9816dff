#!/bin/sh
# Installs Node.js and npm from Debian's packages, for the MessagePack-RPC clients of the tests.
set -eu

root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "npm is not installed, and neither root nor sudo is here; as root run: apt-get install nodejs npm" >&2
        exit 1
    fi
    root=sudo
fi
command -v apt-get >/dev/null || { echo "npm is not installed: install Node.js 18 or newer with npm" >&2; exit 1; }
$root apt-get update -q
$root apt-get install -q -y --no-install-recommends nodejs npm
