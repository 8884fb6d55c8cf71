#!/bin/bash
# `make test`: formatting, lints, every test, and one line that sums them up.
#
# A test that cannot run here prints `SKIP: NAME: REASON` and returns; it is counted as skipped. One
# that is made in a guest only prints `ELSEWHERE: NAME: WHY`; it counts where it is made.
# Exit status: 0 nothing failed, 1 something failed.
cd "$(dirname "$0")/.." || exit 1
: "${CARGO:=cargo}"
passed=0 failed=0 skipped=0

# One check that either passes or fails: check NAME COMMAND...
check() {
    local name=$1
    shift
    echo "== $name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name"
    fi
}

skip() {
    skipped=$((skipped + 1))
    echo "SKIP: $1: $2"
}

command -v "$CARGO" >/dev/null 2>&1 || {
    echo "cargo is not here; install Rust 1.85 or later (https://rustup.rs)" >&2
    exit 1
}

# What is still missing after this is told by the tests that need it.
scripts/deps.sh gcc=gcc g++=g++ make=make valgrind=valgrind tshark=tshark smbclient=smbclient \
    smbtorture=samba-testsuite ip=iproute2 unshare=util-linux mount.cifs=cifs-utils \
    pgrep=procps /lib/systemd/systemd=systemd ksmbd.mountd=ksmbd-tools /usr/include/rdma/rdma_cma.h=librdmacm-dev \
    /etc/libibverbs.d/siw.driver=ibverbs-providers ||
    echo "the tests that need them are skipped"

if $CARGO fmt --version >/dev/null 2>&1; then
    check "cargo fmt" "$CARGO" fmt --check
else
    skip "cargo fmt" "rustfmt is not installed (rustup component add rustfmt)"
fi
if $CARGO clippy --version >/dev/null 2>&1; then
    check "cargo clippy" "$CARGO" clippy --quiet --all-targets -- -D warnings
    check "cargo clippy without verbs" "$CARGO" clippy --quiet --all-targets \
        --no-default-features --features tools -- -D warnings
    check "cargo clippy without features" "$CARGO" clippy --quiet --lib --no-default-features \
        -- -D warnings
else
    skip "cargo clippy" "clippy is not installed (rustup component add clippy)"
fi

check "loom" "$CARGO" test --quiet --manifest-path loom/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}/loom"

log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
echo "== cargo test"
# --show-output keeps the SKIP lines of tests that returned early; they go to the log, the terminal
# gets one line per test.
"$CARGO" test --no-fail-fast -- --show-output >"$log" 2>&1
status=$?
grep -E '^(     Running |   Doc-tests |test .* \.\.\. )' "$log"
if [ $status -ne 0 ]; then
    # A build that failed has no results at all; otherwise show what the failed tests said.
    if grep -q '^test result:' "$log"; then
        sed -n '/^failures:$/,/^test result:/p' "$log"
    else
        cat "$log"
    fi
fi
# GUEST: NAME: COUNT passed: NAMES stands for tests of this host made once more in a guest.
eval "$(awk '
    /^test result:/ { p += $4; f += $6; s += $8 }
    /^GUEST: / { p += $3 - 1 }
    END { printf "cargo_passed=%d cargo_failed=%d cargo_ignored=%d", p, f, s }' "$log")"
# The same line may stand twice in the log (--show-output and a failure's report).
skips=$(grep -E '^SKIP: ' "$log" | sort -u)
early=$(grep -c . <<<"$skips")
((early == 0)) || echo "$skips"
if [ $status -ne 0 ] && [ "$cargo_failed" -eq 0 ]; then
    cargo_failed=1
fi
elsewhere=$(grep -E '^ELSEWHERE: ' "$log" | sort -u | grep -c .)
((elsewhere == 0)) || echo "$elsewhere tests want an RDMA device and are made in guests only (tests/devices.rs)"
passed=$((passed + cargo_passed - early - elsewhere))
failed=$((failed + cargo_failed))
skipped=$((skipped + cargo_ignored + early))

# Once more, and shortly, at the end: long output is often cut in the middle.
if [ "$cargo_failed" -ne 0 ]; then
    echo "== what the failed tests said first"
    awk '
        /^failures:$/ { inside = 1 }
        /^test result:/ { inside = 0 }
        inside && /^---- .* stdout ----$/ { print; panics = left = whys = 0; next }
        inside && /^WHY: / { if (++whys <= 60) print substr($0, 1, 240); next }
        inside && /panicked at / && ++panics <= 4 { left = 5 }
        inside && left > 0 { left--; print substr($0, 1, 240) }
    ' "$log"
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
