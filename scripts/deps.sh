#!/bin/sh
# Installs Debian packages that are missing: scripts/deps.sh COMMAND=PACKAGE... /FILE=PACKAGE...
# As root with apt-get it installs them, otherwise it says what to install. Exit status 1: something
# is still missing.
missing=
for pair; do
    case $pair in
    /*) [ -e "${pair%%=*}" ] ;;
    *) command -v "${pair%%=*}" >/dev/null 2>&1 ;;
    esac || missing="$missing ${pair#*=}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "missing programs; install them first: apt-get install$missing" >&2
    exit 1
fi
echo "installing:$missing"
apt=$(dirname "$0")/apt.sh
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of package names
{ "$apt" update && "$apt" install -y --no-install-recommends $missing; } >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    echo "apt-get could not install:$missing" >&2
    exit 1
}
