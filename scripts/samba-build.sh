#!/bin/bash
# Builds smbd with SMB Direct from Debian's source and samba-patches/, and prints the folder with
# the programs (smbd, smbstatus, ...) as its last line.
#
# usage: scripts/samba-build.sh [--without-smbdirect-rust] [--print-dir]
#   --without-smbdirect-rust   the same source with the option off
#   --print-dir                print the folder if it is built already, build nothing
#
# The result is kept: a second run with the same patches, header, options, source and compiler takes
# no time. Nothing is installed but packages that the build needs (as root). See samba-fetch.sh for
# SMBDIRECT_SAMBA_SOURCE and samba-common.sh for where things are.
set -euo pipefail
# shellcheck source=scripts/samba-common.sh
. "$(dirname "${BASH_SOURCE[0]}")/samba-common.sh"

option=--with-smbdirect-rust
print_only=0
for argument; do
    case $argument in
    --without-smbdirect-rust) option=$argument ;;
    --print-dir) print_only=1 ;;
    *) die "unknown option '$argument'; see the head of $0" ;;
    esac
done
mkdir -p "$cache"

# Prints the folder's name if all that makes up the key is there.
build_dir() {
    local dsc
    dsc=$(compgen -G "$cache/source/samba_*.dsc" | sort -V | tail -n 1) || true
    [[ -n $dsc ]] && command -v gcc >/dev/null || return 1
    local key
    key=$({
        cat "$dsc" "$patches"/*.patch "$project/include/smbdirect.h" "$project/wscript_fragment" \
            "$project"/scripts/samba-{common,build}.sh
        printf '%s\n' "$option" "${samba_configure_options[@]}"
        gcc -dumpmachine -dumpfullversion
        sed -n 's/^\(ID\|VERSION_ID\)=/&/p' /etc/os-release
    } | sha256sum)
    printf '%s/samba-%s\n' "$cache" "${key:0:16}"
}

finished() { [[ -e $1/complete ]]; }

if dir=$(build_dir) && finished "$dir"; then
    touch "$dir/complete"
    printf '%s\n' "$dir"
    exit 0
fi
((!print_only)) || die "not built yet"

install_dependencies
exec 9>"$cache/build.lock"
flock -n 9 || {
    say "samba: waiting for another build to finish"
    flock 9
}
dsc=$("$project/scripts/samba-fetch.sh")
dir=$(build_dir)
if finished "$dir"; then
    printf '%s\n' "$dir"
    exit 0
fi

# The programs find their libraries by absolute path, so they are built where they will be. What is
# needed of it is put together in $dir.new, which then takes the place of the tree.
say "samba: building $(sed -n 's/^Version: //p' "$dsc") with $(compgen -G "$patches/*.patch" | wc -l) patches, $option"
log=$cache/build.log
: >"$log"
rm -rf "$dir" "$dir.new"
trap 'rm -rf "$dir.new"' EXIT
unpack "$dsc" "$dir"
for patch in "$patches"/*.patch; do
    apply_patch "$dir" "$patch"
done
check_copies "$dir"
cd "$dir"
use_ccache "$dir"
run_logged configure "$log" ./buildtools/bin/waf configure \
    "${samba_configure_options[@]}" "$option"
run_logged compile "$log" ./buildtools/bin/waf build -j"$(nproc)" --targets="$samba_targets"

mkdir -p "$dir.new/bin/shared/private"
for program in "${samba_programs[@]}"; do
    cp -L "bin/$program" "$dir.new/bin/"
done
(cd bin/shared && find . \( -type f -o -type l \) -name '*.so*' -print0) |
    while IFS= read -r -d '' library; do
        mkdir -p "$dir.new/bin/shared/$(dirname "$library")"
        cp -L "bin/shared/$library" "$dir.new/bin/shared/$library"
    done
cp COPYING "$dir.new/"
cd /
rm -rf "$dir.tree"
mv "$dir" "$dir.tree"
mv "$dir.new" "$dir"
"$dir/bin/smbd" --version >>"$log" 2>&1 || {
    tail -n 3 "$log" >&2
    die "the smbd just built does not run, see $log"
}
touch "$dir/complete"
rm -rf "$dir.tree"

# The three newest builds stay.
find "$cache" -maxdepth 2 -path '*/samba-*/complete' -printf '%T@ %h\n' | sort -rn | tail -n +4 |
    while read -r _ old; do rm -rf "$old"; done
find "$cache" -maxdepth 1 -name 'samba-*.tree' -exec rm -rf {} +
printf '%s\n' "$dir"
