#!/bin/bash
# `make fuzz`: every fuzzer for SECONDS, one after the other: fuzz.sh SECONDS [TARGET...]
#
# Each starts from its seeds (fuzz/seeds) and what earlier runs have found (fuzz/corpus). An input
# that fails is left in fuzz/artifacts/TARGET; put it into fuzz/seeds/TARGET together with the fix,
# then `cargo test --test fuzz` keeps it fixed. Exit status: 0 nothing was found, 1 something.
cd "$(dirname "$0")/../fuzz" || exit 1
: "${CARGO:=cargo}"
seconds=${1:?seconds for each target}
shift
[ $# -gt 0 ] || set -- $(cd fuzz_targets && basename -s .rs ./*.rs)

"$CARGO" +nightly fuzz --version >/dev/null 2>&1 || {
    echo "make fuzz needs nightly Rust and cargo-fuzz: rustup toolchain install nightly;" \
        "cargo +nightly install cargo-fuzz" >&2
    exit 1
}
"$CARGO" +nightly fuzz build || exit 1
found=0
for target in "$@"; do
    mkdir -p "corpus/$target"
    echo "== $target, $seconds s"
    # Bodies with an engine keep threads and mappings for the whole run: they are no leaks.
    if "$CARGO" +nightly fuzz run "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time="$seconds" -max_len=1500 -timeout=120 -rss_limit_mb=4096 \
        -detect_leaks=0 -print_final_stats=1 >"corpus/$target.log" 2>&1; then
        grep -E '^#[0-9]+.*DONE|stat::number_of_executed_units' "corpus/$target.log"
    else
        found=1
        grep -E -A3 'panicked|ERROR' "corpus/$target.log" | head -20
        echo "FOUND: $target: see fuzz/corpus/$target.log and fuzz/artifacts/$target"
    fi
done
exit $found
