#!/bin/bash
# `make run`: a file over SMB Direct, end to end, on this machine alone.
#
# Builds the library, the program and a patched smbd; starts engine, smbd and proxy in a private
# folder on loopback ports; puts and gets a random file of 256 MiB and a tree of small files with
# Debian's unmodified smbclient; compares checksums; shows what happened; stops all it started.
#
# Environment: SMBDIRECT_DEMO_MIB   size of the large file in MiB (default 256)
#              SMBDIRECT_DEMO_KEEP  if set, the private folder stays (configuration, logs)
set -u
cd "$(dirname "$0")/.." || exit 1
: "${CARGO:=cargo}"
target=${CARGO_TARGET_DIR:-$PWD/target}
size_mib=${SMBDIRECT_DEMO_MIB:-256}
small_files=200

die() {
    echo "run: $*" >&2
    exit 1
}

# --- what is needed --------------------------------------------------------------------------
command -v "$CARGO" >/dev/null 2>&1 || die "cargo is not here; install Rust 1.85 or later (https://rustup.rs)"
scripts/deps.sh gcc=gcc smbclient=smbclient || exit 1

echo "building the library and the program"
"$CARGO" build --quiet --release || die "the build failed"
program=$target/release/smbdirect
library=$target/release/libsmbdirect.so
# The script shows its own progress; its last line is the folder.
samba=$(scripts/samba-build.sh | tee /dev/stderr | tail -n 1)
[ -d "$samba" ] || die "samba was not built"
smbd=$(find "$samba" -name smbd -type f -perm -u+x | head -n 1)
smbstatus=$(find "$samba" -name smbstatus -type f -perm -u+x | head -n 1)
[ -x "$smbd" ] || die "no smbd in $samba"

# --- a private place, and an orderly end -----------------------------------------------------
dir=$(mktemp -d "${TMPDIR:-/tmp}/smbdirect-demo.XXXXXX") || exit 1
pids=()
stop_all() {
    local i pid
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        pid=${pids[i]}
        kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    done
    pids=()
}
finish() {
    local status=$?
    trap - EXIT
    # smbd ends its whole process group; should that be ours, we still have to clean up.
    trap "" TERM
    stop_all
    if [ $status -ne 0 ]; then
        for log in engine proxy smbd; do
            if [ -s "$dir/$log.log" ]; then
                echo "--- end of $log's log" >&2
                tail -n 15 "$dir/$log.log" >&2
            fi
        done
    fi
    if [ -n "${SMBDIRECT_DEMO_KEEP-}" ]; then
        echo "kept: $dir"
    else
        rm -rf "$dir"
    fi
    exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$dir"/{share,in,out,run,state,cache,lock,private,ncalrpc}
chmod 755 "$dir"
chmod 777 "$dir/share"

# wait_for WHAT PID COMMAND...: until the command succeeds, at most 30 s, as long as PID lives
wait_for() {
    local what=$1 pid=$2
    shift 2
    for ((i = 0; i < 300; i++)); do
        "$@" >/dev/null 2>&1 && return
        kill -0 "$pid" 2>/dev/null || die "$what ended early"
        sleep 0.1
    done
    die "$what is not ready after 30 s"
}
address_in() { sed -n 's/^listening on //p' "$1" 2>/dev/null | head -n 1; }

# --- engine, smbd, proxy ---------------------------------------------------------------------
"$program" engine --socket "$dir/run/engine.sock" --listen 127.0.0.1:0 \
    >"$dir/engine.out" 2>"$dir/engine.log" &
pids+=($!)
wait_for "the engine" $! grep -q '^ready' "$dir/engine.out"
rdma=$(address_in "$dir/engine.out")

# smbd cannot take a free port by itself; one that is free now will do on a quiet machine.
free_port() {
    local port
    for ((i = 0; i < 100; i++)); do
        port=$((20000 + RANDOM % 12000))
        (: </dev/tcp/127.0.0.1/$port) 2>/dev/null || {
            echo $port
            return
        }
    done
    return 1
}
tcp_port=$(free_port) || die "no free TCP port on 127.0.0.1"
user=$(id -un)
cat >"$dir/smb.conf" <<EOF
[global]
    server role = standalone server
    server string = SMB Direct demo
    map to guest = Bad User
    guest account = $user
    interfaces = 127.0.0.1
    bind interfaces only = yes
    smb ports = $tcp_port
    disable netbios = yes
    rpc start on demand helpers = false
    load printers = no
    printcap name = /dev/null
    log file = $dir/smbd.log
    log level = 1
    max log size = 0
    pid directory = $dir/run
    state directory = $dir/state
    cache directory = $dir/cache
    lock directory = $dir/lock
    private dir = $dir/private
    ncalrpc dir = $dir/ncalrpc
    smb passwd file = $dir/private/smbpasswd
    passdb backend = smbpasswd
    server smb direct = yes
    smb direct library = $library
    smb direct engine socket = $dir/run/engine.sock
    smbdirect:max fragmented size = $((9 * 1024 * 1024))
[demo]
    path = $dir/share
    guest ok = yes
    read only = no
EOF
"$smbd" --foreground --configfile="$dir/smb.conf" \
    >"$dir/smbd.out" 2>&1 </dev/null &
pids+=($!)
has_parent() { "$program" status --json --socket "$dir/run/engine.sock" | grep -q '"has_params":true'; }
wait_for "smbd" $! has_parent

"$program" proxy --listen 127.0.0.1:0 --connect "$rdma" >"$dir/proxy.out" 2>"$dir/proxy.log" &
proxy=$!
pids+=($proxy)
wait_for "the proxy" $! grep -q '^listening' "$dir/proxy.out"
port=$(address_in "$dir/proxy.out")
port=${port##*:}
echo
echo "smbclient ($(smbclient --version 2>/dev/null)) -> TCP 127.0.0.1:$port -> proxy"
echo "  -> SMB Direct over software iWARP -> engine $rdma -> shared memory -> smbd"

# --- the data --------------------------------------------------------------------------------
echo "making a random file of $size_mib MiB and $small_files small ones"
head -c $((size_mib << 20)) /dev/urandom >"$dir/in/large.bin"
for ((i = 0; i < small_files; i++)); do
    mkdir -p "$dir/in/tree/d$((i % 10))"
    head -c $((RANDOM % 20000 + 1)) /dev/urandom >"$dir/in/tree/d$((i % 10))/f$i"
done

# smb COMMANDS: one run of smbclient, quiet unless it fails
smb() {
    smbclient "//127.0.0.1/demo" --port "$port" --no-pass --user=% --configfile=/dev/null \
        --option='client min protocol=SMB3' --option='client max protocol=SMB3_11' \
        --command="$1" >"$dir/smbclient.log" 2>&1 &
    local pid=$!
    pids+=($pid)
    # A progress line while it runs, on a terminal.
    while [ -t 1 ] && kill -0 $pid 2>/dev/null; do
        printf '\r  %s: %s s ' "$2" "$((SECONDS - since))"
        sleep 0.5
    done
    [ -t 1 ] && printf '\r\033[K'
    local status=0
    wait $pid || status=$?
    unset 'pids[-1]'
    if [ $status -ne 0 ] || grep -q '^NT_STATUS_' "$dir/smbclient.log"; then
        tail -n 5 "$dir/smbclient.log" >&2
        die "smbclient failed: $2"
    fi
}
timed() { # LABEL BYTES COMMANDS
    local start end
    since=$SECONDS
    start=$(date +%s%N)
    smb "$3" "$1"
    end=$(date +%s%N)
    awk -v label="$1" -v bytes="$2" -v ns=$((end - start)) 'BEGIN {
        printf "  %-22s %8.1f MB in %6.2f s  %8.1f MB/s\n", label, bytes / 1e6, ns / 1e9, bytes * 1e3 / ns }'
}
tree_bytes=$(find "$dir/in/tree" -type f -printf '%s\n' | awk '{ s += $1 } END { print s }')
large_bytes=$((size_mib << 20))
echo
timed "put the large file" $large_bytes "lcd $dir/in; put large.bin"
timed "get the large file" $large_bytes "lcd $dir/out; get large.bin"
timed "put $small_files small files" "$tree_bytes" "lcd $dir/in; recurse on; prompt off; mput tree"
timed "get $small_files small files" "$tree_bytes" "lcd $dir/out; recurse on; prompt off; mget tree"

sums() { (cd "$1" && find . -type f | sort | xargs -d '\n' sha256sum); }
sums "$dir/in" >"$dir/sums.in"
sums "$dir/share" >"$dir/sums.share"
sums "$dir/out" >"$dir/sums.out"
cmp -s "$dir/sums.in" "$dir/sums.share" || die "the server's files differ from what was put"
cmp -s "$dir/sums.in" "$dir/sums.out" || die "the files that came back differ from what was put"
echo "  checksums of $((small_files + 1)) files agree: put = on the server = got"

# --- what happened ---------------------------------------------------------------------------
echo
echo "while a client is connected:"
# A session that is held open: smbclient waits for commands from a pipe.
mkfifo "$dir/commands"
smbclient "//127.0.0.1/demo" --port "$port" --no-pass --user=% --configfile=/dev/null \
    --option='client min protocol=SMB3' <"$dir/commands" >"$dir/held.log" 2>&1 &
held=$!
pids+=($held)
exec 7>"$dir/commands"
echo ls >&7
has_owner() { "$program" status --json --socket "$dir/run/engine.sock" | grep -q '"owner_pid":[1-9]'; }
wait_for "the held session" $held has_owner
"$program" status --socket "$dir/run/engine.sock" | sed 's/^/  /'
if [ -x "$smbstatus" ]; then
    "$smbstatus" --configfile="$dir/smb.conf" --processes 2>/dev/null | sed -n '/^PID/,$p' | sed 's/^/  /'
fi
exec 7>&-
wait $held
unset 'pids[-1]'

echo
echo "what each SMB Direct connection moved, seen by the proxy:"
kill $proxy
wait $proxy 2>/dev/null
unset 'pids[-1]'
sed '/^listening/d; s/^/  /' "$dir/proxy.out"
echo
echo "done"
