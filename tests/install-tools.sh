#!/bin/sh
# Installs what the tests need beside Python, from Debian's packages. Does nothing when all of it is there.
set -eu

[ "$(uname -s)" = Linux ] || exit 0 # the tests that need them are about Linux

PATH="$PATH:/usr/sbin" # where Postfix is; not on every user's path
packages=""
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }

need strace strace
need postfix postfix
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

# Without a configuration no mail server starts here; the tests run one of their own. Where the machine has another one,
# that stays, and this fails.
case $packages in *postfix*)
    echo "postfix postfix/main_mailer_type select No configuration" | $root debconf-set-selections
    ;;
esac
$root apt-get update -q
# shellcheck disable=SC2086 # a list of names
$root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends --no-remove $packages
