# shellcheck shell=bash
# What scripts/samba-*.sh have in common; to be sourced.
#
# Everything lives below the cache folder, ${XDG_CACHE_HOME:-~/.cache}/smbdirect:
#   source/      Debian's source package of samba, as fetched
#   apt/         state of the private apt that fetches it
#   ccache/      compiler cache, so that changed patches build fast
#   samba-KEY/   one build; KEY stands for all that went into it

samba_suite=trixie
samba_series=4.22

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/smbdirect
patches=$project/samba-patches/$samba_series

# What a lean file server needs to be configured and built. Two columns: a file of the package
# or a command, then the package.
samba_dependencies=(
    gcc:gcc
    /usr/include/stdio.h:libc6-dev
    make:make
    patch:patch
    xz:xz-utils
    perl:perl
    python3:python3
    pkg-config:pkg-config
    bison:bison
    flex:flex
    ccache:ccache
    dpkg-source:dpkg-dev
    asn1Parser:libtasn1-bin
    /usr/share/perl5/Parse/Yapp.pm:libparse-yapp-perl
    /usr/share/perl5/JSON.pm:libjson-perl
    /usr/include/gnutls/gnutls.h:libgnutls28-dev
    /usr/include/jansson.h:libjansson-dev
    /usr/include/zlib.h:zlib1g-dev
    /usr/include/unicode/utypes.h:libicu-dev
    /usr/include/tirpc/rpc/rpc.h:libtirpc-dev
)

samba_configure_options=(
    --without-ad-dc --disable-python --without-ldb-lmdb --without-pam --without-ads
    --without-ldap --disable-cups --disable-iprint --disable-avahi --without-libarchive
    --without-winbind --without-systemd --without-gpgme --without-regedit --disable-wsp
    --without-acl-support "--with-shared-modules=!vfs_snapper"
)

samba_programs=(smbd pdbedit smbpasswd smbcontrol smbstatus testparm)
samba_targets=smbd/smbd,pdbedit,smbpasswd,smbcontrol,smbstatus,testparm

say() { printf '%s\n' "$*" >&2; }
die() {
    say "${0##*/}: $*"
    exit 1
}

# Installs what is missing, as root; otherwise says what to install.
install_dependencies() {
    local pair probe package missing=()
    for pair in "${samba_dependencies[@]}"; do
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

    say "samba: installing ${missing[*]}"
    local log=$cache/apt-install.log
    local install=(apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends
        "${missing[@]}")
    export DEBIAN_FRONTEND=noninteractive
    if ! "${install[@]}" >"$log" 2>&1; then
        # usually the package lists are missing or too old
        { apt-get -o DPkg::Lock::Timeout=300 update -q && "${install[@]}"; } >"$log" 2>&1 || {
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
        at=$(tail -c 4096 "$log" | grep -aoE '^\[ *[0-9]+/[0-9]+\]' | tail -n 1 || true)
        if [[ -t 2 ]]; then
            printf '\r\033[Ksamba: %s %s (%d s)' "$label" "$at" $((SECONDS - started)) >&2
        elif ((SECONDS - started >= next)); then
            say "samba: $label $at ($((SECONDS - started)) s)"
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
    say "samba: $label: $((SECONDS - started)) s"
}

# unpack SOURCE TREE: Debian's tree, with Debian's patches.
unpack() {
    dpkg-source --no-copy -x "$1" "$2" >"$cache/unpack.log" 2>&1 || {
        tail -n 5 "$cache/unpack.log" >&2
        die "$1 does not unpack"
    }
}

# apply_patch TREE PATCH: no fuzz, no leftovers.
apply_patch() {
    patch -d "$1" -p1 -F0 -s --no-backup-if-mismatch <"$2" >&2 ||
        die "${2##*/} does not apply to $1"
}

# The waf fragment and the header exist twice: here, and inside the patch that adds them.
check_copies() {
    cmp -s "$project/wscript_fragment" "$1/lib/smbdirect/wscript" ||
        die "wscript_fragment differs from lib/smbdirect/wscript of the patches;" \
            "run scripts/samba-sync.py"
    cmp -s "$project/include/smbdirect.h" "$1/lib/smbdirect/smbdirect.h" ||
        die "include/smbdirect.h differs from lib/smbdirect/smbdirect.h of the patches;" \
            "run scripts/samba-sync.py"
}

# use_ccache TREE: the same source in another folder is a hit.
use_ccache() {
    export CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$1 CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=1G
    export PATH=/usr/lib/ccache:$PATH PYTHONHASHSEED=1
}
