#!/bin/bash
# Checks that each patch of the series applies without fuzz and builds on its own, and that the last
# one builds without the option, too. It takes a while: one build for each patch.
#
# usage: scripts/samba-check-series.sh
set -euo pipefail
# shellcheck source=scripts/samba-common.sh
. "$(dirname "${BASH_SOURCE[0]}")/samba-common.sh"

mkdir -p "$cache"
install_dependencies
exec 9>"$cache/build.lock"
flock 9
dsc=$("$project/scripts/samba-fetch.sh")
tree=$cache/series
log=$cache/series.log
: >"$log"
rm -rf "$tree"
trap 'rm -rf "$tree"' EXIT
unpack "$dsc" "$tree"
cd "$tree"
use_ccache "$tree"

waf() { ./buildtools/bin/waf "$@"; }
known_option() { [[ -e lib/smbdirect/wscript ]]; }

configured=''
for patch in "$patches"/*.patch; do
    apply_patch "$tree" "$patch"
    options=()
    known_option && options=(--with-smbdirect-rust)
    if [[ $configured != "configured ${options[*]-}" ]]; then
        run_logged "configure ${options[*]-}" "$log" waf configure \
            "${samba_configure_options[@]}" "${options[@]}"
        configured="configured ${options[*]-}"
    fi
    name=${patch##*/}
    run_logged "${name%.patch}" "$log" waf build -j"$(nproc)" --targets="$samba_targets"
done
check_copies "$tree"
run_logged "configure --without-smbdirect-rust" "$log" waf configure \
    "${samba_configure_options[@]}" --without-smbdirect-rust
run_logged "all patches, --without-smbdirect-rust" "$log" \
    waf build -j"$(nproc)" --targets="$samba_targets"
# our files are new, so there is no reason for a warning in them
if grep -aE '(smb_direct[a-z_]*|smbdirect_lib)\.[ch]:[0-9]+.*warning' "$log"; then
    die "the compiler warns about our files"
fi
say "samba: each of $(compgen -G "$patches/*.patch" | wc -l) patches builds"
