#!/bin/sh
# apt-get with patience: scripts/apt.sh ARGUMENT... It waits until others of its kind are done, up to
# five minutes, and asks a mirror again that failed.
said=$(mktemp) || exit 1
trap 'rm -f "$said"' EXIT
tries=60
while :; do
    apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=5 "$@" 2>"$said"
    status=$?
    cat "$said" >&2
    # For the lock of the package lists apt-get has no time-out.
    tries=$((tries - 1))
    [ $status -ne 0 ] && [ $tries -gt 0 ] && grep -q 'Unable to lock directory' "$said" || exit $status
    sleep 5
done
