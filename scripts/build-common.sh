# shellcheck shell=bash
# What the scripts that build other people's source have in common; to be sourced.
# $cache is the folder they keep things in. $about stands before each progress line.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/smbdirect
about=${about:-build}

say() { printf '%s\n' "$*" >&2; }
die() {
    say "${0##*/}: $*"
    exit 1
}

# install_missing PROBE:PACKAGE...: a probe is a command, or the absolute path of a file. Installs
# the packages of those that are not there, as root; otherwise says what to install.
install_missing() {
    local pair probe package missing=()
    for pair; do
        probe=${pair%%:*} package=${pair#*:}
        if [[ $probe == /* ]]; then
            # libraries have their headers in a folder named after the machine on Debian
            [[ -e $probe ]] || compgen -G "/usr/include/*-linux-gnu*/${probe#/usr/include/}" \
                >/dev/null || missing+=("$package")
        else
            command -v "$probe" >/dev/null 2>&1 || missing+=("$package")
        fi
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null 2>&1 ||
        die "this needs Debian 12 or 13; no apt-get here to install: ${missing[*]}"
    ((EUID == 0)) ||
        die "packages are missing; as root: apt-get install ${missing[*]}"

    say "$about: installing ${missing[*]}"
    local log=$cache/apt-install.log
    local apt=$project/scripts/apt.sh
    local install=("$apt" install -y -q --no-install-recommends "${missing[@]}")
    export DEBIAN_FRONTEND=noninteractive
    if ! "${install[@]}" >"$log" 2>&1; then
        # usually the package lists are missing or too old
        { "$apt" update -q && "${install[@]}"; } >"$log" 2>&1 || {
            tail -n 5 "$log" >&2
            die "apt-get could not install: ${missing[*]}"
        }
    fi
}

# run_logged LABEL LOG COMMAND...: runs a long command quietly, with a progress line. On failure
# shows the end of the log.
run_logged() {
    local label=$1 log=$2 started=$SECONDS next=15 pid status=0 at
    shift 2
    "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    # shellcheck disable=SC2064 # now is when pid is known
    trap "kill $pid 2>/dev/null" INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        at=$(progress_of "$log" || true)
        if [[ -t 2 ]]; then
            printf '\r\033[K%s: %s %s (%d s)' "$about" "$label" "$at" $((SECONDS - started)) >&2
        elif ((SECONDS - started >= next)); then
            say "$about: $label $at ($((SECONDS - started)) s)"
            next=$((next + 15))
        fi
        sleep 1
    done
    wait "$pid" || status=$?
    trap - INT TERM
    [[ -t 2 ]] && printf '\r\033[K' >&2
    if ((status)); then
        grep -aE '(: error|^error|fatal|rror:|not found)' "$log" | grep -av 'idl:' | tail -n 10 >&2 || true
        tail -n 5 "$log" >&2
        die "$label failed, see $log"
    fi
    say "$about: $label: $((SECONDS - started)) s"
}

# progress_of LOG: how far it is, from the end of the log. waf counts its steps; a script may
# replace this.
progress_of() {
    tail -c 4096 "$1" | grep -aoE '^\[ *[0-9]+/[0-9]+\]' | tail -n 1
}

# use_ccache TREE: the same source in another folder is a hit.
use_ccache() {
    export CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$1 CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=1G
    export PATH=/usr/lib/ccache:$PATH PYTHONHASHSEED=1
}
