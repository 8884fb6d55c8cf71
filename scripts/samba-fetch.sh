#!/bin/bash
# Gets Debian's source package of samba (trixie) and prints the path of its .dsc file.
#
# usage: scripts/samba-fetch.sh [--refresh]
#   --refresh   look for a newer version even if there is one in the cache
#
# The mirror is the one this machine uses itself. apt gets a configuration and state of its own, so
# that the machine's set-up stays as it is. If that fails and SMBDIRECT_SAMBA_SOURCE names a folder
# with the .dsc file and what belongs to it, those are used.
set -euo pipefail
# shellcheck source=scripts/samba-common.sh
. "$(dirname "${BASH_SOURCE[0]}")/samba-common.sh"

refresh=0
case ${1-} in
'') ;;
--refresh) refresh=1 ;;
*) die "unknown option '$1'; usage: ${0##*/} [--refresh]" ;;
esac

newest_dsc() {
    local files
    files=$(compgen -G "$1/samba_*$samba_series*.dsc" | sort -V | tail -n 1) || true
    [[ -n $files ]] && printf '%s\n' "$files"
}

if ((!refresh)) && dsc=$(newest_dsc "$cache/source"); then
    printf '%s\n' "$dsc"
    exit 0
fi

mkdir -p "$cache"
exec 8>"$cache/fetch.lock"
flock 8
if ((!refresh)) && dsc=$(newest_dsc "$cache/source"); then
    printf '%s\n' "$dsc"
    exit 0
fi

staging=$cache/source.new
rm -rf "$staging"
mkdir -p "$staging"
trap 'rm -rf "$staging"' EXIT
log=$cache/fetch.log
: >"$log"

# Writes the sources of the private apt: Debian's mirrors among the machine's own, for our suite.
write_sources() {
    local uri release keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local main='' other='' security=''
    while read -r release uri; do
        case $release in
        *-security | */updates) security=${security:-$uri} ;;
        bookworm | trixie | forky | sid | stable | testing | unstable | oldstable)
            # a mirror may have any path, but other people's archives use these names, too
            [[ $uri == */debian/ ]] && main=${main:-$uri}
            other=${other:-$uri}
            ;;
        esac
    done < <(apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' \
        'Created-By: Packages' 'Component: main' 2>>"$log" | sort -u)
    main=${main:-$other}
    [[ -n $main ]] || {
        echo "no Debian mirror among the sources of apt" >>"$log"
        return 1
    }
    local option=''
    [[ -e $keyring ]] && option="[signed-by=$keyring] "
    {
        echo "deb-src $option$main $samba_suite main"
        echo "deb-src $option$main $samba_suite-updates main"
        [[ -z $security ]] || echo "deb-src $option$security $samba_suite-security main"
    } >"$cache/apt/sources.list"
}

fetch() {
    local apt
    command -v apt-get >/dev/null 2>&1 || {
        echo "no apt-get here" >>"$log"
        return 1
    }
    mkdir -p "$cache"/apt/{lists/partial,cache/archives/partial,empty.d}
    : >"$cache/apt/status"
    write_sources || return 1
    apt=(apt-get -q
        -o Dir::Etc::SourceList="$cache/apt/sources.list"
        -o Dir::Etc::SourceParts="$cache/apt/empty.d"
        -o Dir::Etc::Preferences=/dev/null
        -o Dir::Etc::PreferencesParts="$cache/apt/empty.d"
        -o Dir::State::Lists="$cache/apt/lists"
        -o Dir::State::Status="$cache/apt/status"
        -o Dir::Cache="$cache/apt/cache"
        -o APT::Get::List-Cleanup=true
        -o APT::Sandbox::User=root
        -o Acquire::Retries=3
        -o Acquire::Languages=none)
    "${apt[@]}" update >>"$log" 2>&1 || return 1
    (cd "$staging" && "${apt[@]}" source --download-only samba >>"$log" 2>&1) || return 1
    newest_dsc "$staging" >/dev/null || {
        echo "$samba_suite has no samba $samba_series:" "$staging"/*.dsc >>"$log"
        return 1
    }
}

say "samba: fetching Debian's source package ($samba_suite)"
if ! fetch; then
    reason=$(grep -E '^E:|no ' "$log" | tail -n 3 || true)
    [[ -n ${SMBDIRECT_SAMBA_SOURCE-} ]] ||
        die "fetching failed, see $log: ${reason:-unknown reason}" \
            "(SMBDIRECT_SAMBA_SOURCE=folder may name a copy of the source package)"
    say "samba: fetching failed (${reason:-see $log}), using $SMBDIRECT_SAMBA_SOURCE"
    dsc=$(newest_dsc "$SMBDIRECT_SAMBA_SOURCE") ||
        die "SMBDIRECT_SAMBA_SOURCE: no samba_$samba_series*.dsc in '$SMBDIRECT_SAMBA_SOURCE'"
    cp "$SMBDIRECT_SAMBA_SOURCE"/samba_"$samba_series"* "$staging/"
fi
dsc=$(newest_dsc "$staging")

# apt has verified what it fetched; this also covers a copy from somewhere else.
(cd "$staging" && sed -n '/^Checksums-Sha256:/,/^[^ ]/s/^ \([0-9a-f]\{64\}\) [0-9]* \(.*\)$/\1  \2/p' \
    "$dsc" | sha256sum --check --quiet --strict >>"$log" 2>&1) ||
    die "the files do not have the checksums that ${dsc##*/} gives, see $log"

rm -rf "$cache/source"
mv "$staging" "$cache/source"
newest_dsc "$cache/source"
