#!/bin/bash
# Builds a User-mode Linux kernel from Debian's linux-source-6.12 with tests/uml/fragment.config,
# and prints the path of the kernel, an ordinary program, as its last line.
#
# usage: scripts/uml-build.sh [--refresh] [--print]
#   --refresh   look for a newer version of the source even if there is one in the cache
#   --print     print the path if it is built already, build nothing
#
# Everything lives below ${XDG_CACHE_HOME:-~/.cache}/smbdirect:
#   linux-source/   Debian's package, as fetched by apt from the sources of this machine
#   uml-KEY/        one build; KEY stands for source, fragment, this script and compiler
# Nothing is installed but packages that the build needs (as root). It takes 5 to 10 minutes on two
# cores, and 2 GB of disk while it runs.
set -euo pipefail
about=uml
# shellcheck source=scripts/build-common.sh
. "$(dirname "${BASH_SOURCE[0]}")/build-common.sh"

package=linux-source-6.12
fragment=$project/tests/uml/fragment.config
dependencies=(
    gcc:gcc
    /usr/include/stdio.h:libc6-dev
    make:make
    xz:xz-utils
    bc:bc
    bison:bison
    flex:flex
    perl:perl
    ccache:ccache
    cpio:cpio
    /usr/include/libelf.h:libelf-dev
    /usr/include/openssl/ssl.h:libssl-dev
)

refresh=0 print_only=0
for argument; do
    case $argument in
    --refresh) refresh=1 ;;
    --print) print_only=1 ;;
    *) die "unknown option '$argument'; see the head of $0" ;;
    esac
done
mkdir -p "$cache"

newest_source() {
    local found
    found=$(compgen -G "$cache/linux-source/${package}_*.deb" | sort -V | tail -n 1) || true
    [[ -n $found ]] && printf '%s\n' "$found"
}

# Prints the folder of the build if all that makes up the key is there.
build_dir() {
    local source key
    source=$(newest_source) && command -v gcc >/dev/null || return 1
    key=$({
        printf '%s\n' "${source##*/}"
        cat "$fragment" "$project/scripts/uml-build.sh"
        gcc -dumpmachine -dumpfullversion
    } | sha256sum)
    printf '%s/uml-%s\n' "$cache" "${key:0:16}"
}

finish_if_built() {
    local dir
    dir=$(build_dir) && [[ -x $dir/linux ]] || return 0
    touch "$dir/linux"
    printf '%s\n' "$dir/linux"
    exit 0
}

((refresh)) || finish_if_built
((!print_only)) || die "not built yet"
[[ $(uname -m) == x86_64 ]] || die "this needs Debian on x86_64, the machine is $(uname -m)"

install_missing "${dependencies[@]}"
exec 9>"$cache/uml.lock"
flock -n 9 || {
    say "uml: waiting for another build to finish"
    flock 9
}

# --- the source --------------------------------------------------------------------------------
log=$cache/uml-build.log
: >"$log"
fetch() {
    local staging=$cache/linux-source.new
    rm -rf "$staging"
    mkdir -p "$staging"
    (cd "$staging" && apt-get -q -o APT::Sandbox::User=root download "$package") || return 1
    rm -rf "$cache/linux-source"
    mv "$staging" "$cache/linux-source"
}
if ((refresh)) || ! newest_source >/dev/null; then
    command -v apt-get >/dev/null 2>&1 || die "this needs Debian 12 or 13; no apt-get here"
    say "uml: fetching $package"
    # Lists that are missing or too old are the usual reason when it fails.
    fetch >>"$log" 2>&1 || {
        ((EUID != 0)) || apt-get -q -o DPkg::Lock::Timeout=300 update >>"$log" 2>&1 || true
        fetch >>"$log" 2>&1
    } || die "fetching failed, see $log: $(grep -E '^[EW]:' "$log" | tail -n 2)"
fi
finish_if_built
dir=$(build_dir)

# --- the build ---------------------------------------------------------------------------------
progress_of() { printf '%s objects' "$(grep -acE '^  (CC|AS|LD|AR) ' "$1")"; }
work=$cache/uml.work
rm -rf "$work" "$dir"
mkdir -p "$work/package" "$work/source" "$work/out"
trap 'rm -rf "$work"' EXIT
unpack() {
    dpkg-deb -x "$(newest_source)" "$work/package" &&
        tar -xf "$work/package/usr/src/$package.tar.xz" -C "$work/source" --strip-components=1
}
run_logged unpack "$log" unpack
use_ccache "$work"
cd "$work/source"
# The time of the build would make each kernel another one.
export KBUILD_BUILD_TIMESTAMP='1970-01-01' KBUILD_BUILD_USER=smbdirect KBUILD_BUILD_HOST=localhost
build=(make ARCH=um O="$work/out")
configure() {
    "${build[@]}" defconfig &&
        scripts/kconfig/merge_config.sh -m -O "$work/out" "$work/out/.config" "$fragment" &&
        "${build[@]}" olddefconfig
}
run_logged configure "$log" configure
# A line that did not make it into the configuration has a dependency that is not met.
while read -r line; do
    grep -qxF -- "$line" "$work/out/.config" || die "the configuration refused $line"
done < <(grep -E '^CONFIG_.*=' "$fragment")
run_logged "compile $(basename "$(newest_source)" _all.deb)" "$log" \
    "${build[@]}" -j"$(nproc)" linux

mkdir -p "$dir.new"
strip -o "$dir.new/linux" "$work/out/linux"
cp "$work/out/.config" "$dir.new/config"
"$dir.new/linux" --version >>"$log" 2>&1 || die "the kernel just built does not run, see $log"
mv "$dir.new" "$dir"

# The two newest builds stay.
find "$cache" -maxdepth 2 -path '*/uml-*/linux' -printf '%T@ %h\n' | sort -rn | tail -n +3 |
    while read -r _ old; do rm -rf "$old"; done
printf '%s\n' "$dir/linux"
