# shellcheck shell=bash
# What the kernel's client has to be able to do. To be sourced; a function set_NAME for each set.

share=/mnt/share
filecheck=/mnt/host/filecheck
mib=$((1 << 20))
# See filecheck.c.
export FILECHECK_FLUSH=1

# check NAME COMMAND...: one line for the test; a failed command of a function ends it. What another
# guest has passed before its client hung is left out.
check() {
    local name=$1 status watcher
    shift
    [[ " $PASSED " != *" $name "* ]] || return 0
    note_rxe "$name"
    watch &
    watcher=$!
    (
        # what a failed check has left running
        trap 'kill $(jobs -p) $(pgrep -x filecheck) 2>/dev/null || :' EXIT
        set -e
        "$@"
    )
    status=$?
    kill $watcher
    if ((status == 0)); then
        echo "@@ pass $name"
    elif rxe_failed; then
        show_server
        echo "@@ stuck"
        power_off_at_once
    else
        sed -n '/SMBDirect/,$p' /proc/fs/cifs/DebugData
        show_blocked
        show_server
        echo "@@ fail $name"
    fi
    cd /
    ! mountpoint -q "$share" || umount "$share" || umount -l "$share"
    ((status == 0)) || wait_until "the connections end" is_unused
}

# The client takes a connection down. DebugData tells that of the first channel only (status 5); of
# the others, cifsd waits for the lock that a sending process holds.
is_going_down() {
    local process
    ! grep -q 'transport status: 5' /proc/fs/cifs/DebugData || return 0
    for process in $(pgrep -x cifsd); do
        ! grep -q __mutex_lock "/proc/$process/stack" ||
            ! grep -q cifs_reconnect "/proc/$process/stack" || return 0
    done
    return 1
}

# Who waits uninterruptibly to send, or to take a connection down: number and stack of each process.
# Who sends is the same only if it has not run at all meanwhile.
waiting_in_smbd() {
    local stack process
    for stack in $(grep -lE 'smbd_(send|destroy)' /proc/[0-9]*/stack); do
        process=${stack%/stack}
        grep -q '^State:\sD' "$process/status" || continue
        {
            echo "$process"
            cat "$stack"
            grep -q smbd_destroy "$stack" || grep voluntary "$process/status"
        } | tr '\n' ' '
        echo
    done 2>/dev/null
}

# Looks now and then whether the client hangs for good, see README.md: twelve seconds long it takes a
# connection down and does not get on with it, or a process waits at one place. That is for the test to
# know.
watch() {
    local down=0 same=0 rounds=0 waiting='' now still
    while ((down < 4 && same < 4)); do
        sleep 3
        # Long before the test loses its patience
        ((++rounds != 100)) || show_everybody
        if is_going_down 2>/dev/null; then
            down=$((down + 1))
        else
            down=0
        fi
        now=$(waiting_in_smbd)
        still=$(grep -xF -e "$waiting" <<<"$now")
        if [[ -n $still ]]; then
            same=$((same + 1)) waiting=$still
        else
            same=1 waiting=$now
            [[ -n $now ]] || same=0
        fi
    done
    # What this says it says to its end.
    trap '' TERM
    sed -n '/SMBDirect/,/MR mr_ready/p' /proc/fs/cifs/DebugData
    show_blocked
    show_server
    echo "@@ stuck"
    power_off_at_once
}

# For a check that takes very long, and goes on: who waits where, and what the server has.
show_everybody() {
    local process
    echo "--- this check takes long"
    sed -n '/SMBDirect/,$p' /proc/fs/cifs/DebugData
    for process in $(pgrep 'cifsd|filecheck|mount|smbd|kworker|cp|diff|rm'); do
        echo "--- $process $(<"/proc/$process/comm")"
        cat "/proc/$process/stack"
    done 2>/dev/null
    status_json
    show_server
}

# Where kernel threads and processes wait uninterruptibly.
show_blocked() {
    local process
    for process in /proc/[0-9]*; do
        if grep -q '^State:\sD' "$process/status" 2>/dev/null; then
            echo "--- $(<"$process/comm")"
            cat "$process/stack"
        fi
    done
    dmesg | tail -n 30
}

# mount_share OPTIONS
mount_share() {
    mounted_with=$1
    mount -t cifs "//$SERVER/share" "$share" -o "user=root,pass=$PASSWORD,$1"
}

is_unused() { [[ $(server counters) == *" 0" ]]; }

unmount() {
    umount "$share"
    wait_until "the connections end" is_unused
}

# Not before the connection is gone: the client may take it down late, and then hit a new one that has
# its place in memory (README.md, The crash).
remount() {
    unmount
    mount_share "$1"
}

# --- ways of the data ----------------------------------------------------------------------------

# Runs a command; sets `read`, `written`, `received` and `sent` to the bytes that the server moved
# by RDMA READ, by RDMA WRITE and in PDUs meanwhile.
count_bytes() {
    local before after
    before=($(server counters))
    "$@"
    after=($(server counters))
    read=$((after[0] - before[0])) written=$((after[1] - before[1]))
    received=$((after[2] - before[2])) sent=$((after[3] - before[3]))
    echo "$*: RDMA READ $read, RDMA WRITE $written, PDUs in $received, out $sent"
}

# debug_field NAME: a hexadecimal number of DebugData, for the first server
debug_field() {
    local value
    value=$(grep -oE "$1: [0-9a-f]+" /proc/fs/cifs/DebugData | head -n 1)
    echo $((16#${value##* }))
}

registrations_in_use() { (($(debug_field mr_used_count) > 0)); }

# File data went by RDMA, both ways: the server counts it, and so does the client.
data_goes_by_rdma() {
    local bytes=$((32 * mib)) messages reader
    messages=$(debug_field count_enqueue_reassembly_queue)
    count_bytes "$filecheck" fill "$share/rdma" 1 $bytes $mib
    ((read >= bytes && received < bytes / 16))
    count_bytes "$filecheck" check "$share/rdma" 1 $bytes $mib
    ((written >= bytes && sent < bytes / 16))
    # Sent and received, these bytes would be 24,000 messages of 1364 bytes each way.
    messages=$(($(debug_field count_enqueue_reassembly_queue) - messages))
    echo "messages with PDUs: $messages"
    ((messages < 2000))
    # Memory is registered while requests are in flight.
    until [[ -e /tmp/enough ]]; do "$filecheck" check "$share/rdma" 1 $bytes $mib; done &
    reader=$!
    wait_until "a registration in use" registrations_in_use
    touch /tmp/enough
    wait $reader
    rm "$share/rdma" /tmp/enough
}

data_goes_in_pdus() {
    local bytes=$((4 * mib))
    count_bytes "$filecheck" fill "$share/pdus" 1 $bytes $mib
    ((read == 0 && received > bytes))
    count_bytes "$filecheck" check "$share/pdus" 1 $bytes $mib
    ((written == 0 && sent > bytes))
    rm "$share/pdus"
}

# --- files ---------------------------------------------------------------------------------------

make_tree() {
    local i
    mkdir -p "$1"
    for ((i = 0; i < 120; i++)); do
        mkdir -p "$1/d$((i % 12))/e$((i % 5))"
        head -c $((i * i * 7)) /dev/urandom >"$1/d$((i % 12))/e$((i % 5))/f $i"
    done
    : >"$1/empty"
}

trees() {
    make_tree /tmp/tree
    cp -r /tmp/tree "$share/tree"
    diff -r /tmp/tree "$share/tree"
    remount "$1"
    diff -r /tmp/tree "$share/tree"
    cp -r "$share/tree" /tmp/back
    diff -r /tmp/tree /tmp/back
    mv "$share/tree/d3" "$share/tree/d 3 moved"
    mv "$share/tree/d4/e4/f 4" "$share/tree/empty"
    cmp "/tmp/tree/d4/e4/f 4" "$share/tree/empty"
    [[ $(find "$share/tree" -type f | wc -l) -eq 120 ]]
    rm -r "$share/tree" /tmp/tree /tmp/back
    [[ ! -e $share/tree ]]
}

large_file() {
    local bytes=$((128 * mib)) ours
    head -c $bytes /dev/urandom >/tmp/large
    ours=$(sha256sum </tmp/large | cut -d ' ' -f 1)
    cp /tmp/large "$share/large"
    sync "$share/large"
    [[ $(server sum large) == "$ours" ]]
    remount "$1"
    cmp /tmp/large "$share/large"
    remount "$1"
    # from the middle, and with sizes that fit nothing
    dd if="$share/large" of=/tmp/part bs=999983 skip=31 count=17 2>/dev/null
    cmp <(dd if=/tmp/large bs=999983 skip=31 count=17 2>/dev/null) /tmp/part
    rm "$share/large" /tmp/large /tmp/part
}

sparse_file() {
    truncate -s 6G "$share/sparse"
    printf end >/tmp/end
    dd if=/tmp/end of="$share/sparse" bs=1 seek=$((5 << 30)) conv=notrunc 2>/dev/null
    head -c 300000 /dev/urandom >/tmp/middle
    dd if=/tmp/middle of="$share/sparse" bs=65537 oflag=seek_bytes seek=$((3 << 30 | 12345)) \
        conv=notrunc 2>/dev/null
    remount "$1"
    [[ $(stat -c %s "$share/sparse") -eq $((6 << 30)) ]]
    cmp /tmp/middle <(tail -c +$(((3 << 30 | 12345) + 1)) "$share/sparse" | head -c 300000)
    cmp -n 3 /tmp/end <(tail -c +$(((5 << 30) + 1)) "$share/sparse" | head -c 3)
    # a hole, around the data
    cmp -n $mib <(tail -c +$((1 << 30)) "$share/sparse" | head -c $mib) /dev/zero
    [[ -z $(tail -c 100000 "$share/sparse" | tr -d '\0') ]]
    rm "$share/sparse" /tmp/end /tmp/middle
}

# Reads at and around the end of a file, direct and not.
ends_of_files() {
    local size
    for size in 1 4095 4096 4097 65535 65537 1048575 1048577 3000001; do
        head -c $size /dev/urandom >/tmp/end
        cp /tmp/end "$share/end"
        sync "$share/end"
        dd if="$share/end" of=/tmp/back bs=4M iflag=direct 2>/dev/null
        cmp /tmp/end /tmp/back
        remount "$1"
        cmp /tmp/end "$share/end"
        [[ $(tail -c +$((size + 1)) "$share/end" | wc -c) -eq 0 ]]
        # one byte more
        printf x | tee -a /tmp/end >>"$share/end"
        cmp /tmp/end "$share/end"
    done
    rm "$share/end" /tmp/end /tmp/back
}

# random_operations COUNT SEED...
random_operations() {
    local count=$1 seed
    shift
    for seed; do
        "$filecheck" cached "$share/random" "$seed" "$count" 5000000
        "$filecheck" direct "$share/random" "$seed" "$count" 5000000
    done
    rm "$share/random"
}

# Many files at once: written, then read.
parallel_files() {
    local i pids=() pid command
    for command in fill check; do
        for ((i = 0; i < 24; i++)); do
            "$filecheck" $command "$share/parallel$i" $i $((mib * 3)) $((65536 << (i % 3))) &
            pids+=($!)
        done
        for ((i = 0; i < 4; i++)); do
            "$filecheck" cached "$share/mixed$i" $i 40 2000000 &
            pids+=($!)
        done
        for pid in "${pids[@]}"; do wait "$pid"; done
        pids=()
    done
    rm "$share"/parallel* "$share"/mixed*
}

sizes_of_io() {
    local size
    for size in 4096 61440 1048576 8388608; do
        mount_share "$1,rsize=$size,wsize=$size"
        "$filecheck" fill "$share/sizes" $size $((16 * mib)) $((8 * mib))
        "$filecheck" check "$share/sizes" $size $((16 * mib)) $((2 * mib))
        "$filecheck" cached "$share/random" $size 60 3000000
        rm "$share/sizes" "$share/random"
        unmount
    done
}

# with OPTIONS COMMAND...: mounted, and nothing is left after it
with() {
    local options=$1
    shift
    mount_share "$options"
    "$@"
    unmount
}

set_files() {
    local plain=vers=3.1.1,rdma
    check data_goes_by_rdma with $plain data_goes_by_rdma
    check trees with $plain trees $plain
    check large_file with $plain large_file $plain
    check sparse_file with $plain sparse_file $plain
    check ends_of_files with $plain ends_of_files $plain
    check random_operations with $plain random_operations 200 1 2 3 4
    check random_operations_uncached with $plain,cache=none random_operations 150 5 6
    check parallel_files with $plain parallel_files
    check sizes_of_io sizes_of_io $plain
}

# --- dialects ------------------------------------------------------------------------------------

set_dialects() {
    local dialect
    for dialect in 3.0 3.02 3.1.1; do
        check "data_goes_by_rdma_$dialect" with "vers=$dialect,rdma" data_goes_by_rdma
        check "random_operations_$dialect" with "vers=$dialect,rdma" random_operations 60 11
    done
    check two_mounts two_mounts
}

# One by RDMA and one by TCP see each other's files.
two_mounts() {
    mount_share vers=3.1.1,rdma
    mkdir -p /mnt/tcp
    mount -t cifs "//$SERVER/share" /mnt/tcp -o "user=root,pass=$PASSWORD,port=$TCP_PORT,nosharesock"
    "$filecheck" fill "$share/both" 3 $((8 * mib)) $mib
    "$filecheck" check /mnt/tcp/both 3 $((8 * mib)) $mib
    "$filecheck" fill /mnt/tcp/both 4 $((8 * mib)) $mib
    "$filecheck" check "$share/both" 4 $((8 * mib)) $mib
    umount /mnt/tcp
    rm "$share/both"
    unmount
}

# --- CRC in every frame ---------------------------------------------------------------------------

# siw makes and checks CRCs as soon as its peer asks for them.
listens_with_crc() { status_json | grep -q '"crc": *true'; }

set_crc() {
    local dialect
    check listens_with_crc listens_with_crc
    for dialect in 3.0 3.1.1; do
        check "data_goes_by_rdma_$dialect" with "vers=$dialect,rdma" data_goes_by_rdma
        check "random_operations_$dialect" with "vers=$dialect,rdma" random_operations 60 13
    done
    check parallel_files with vers=3.1.1,rdma parallel_files
    check data_goes_in_pdus with vers=3.1.1,rdma,sign data_goes_in_pdus
}

# --- two fabrics in one engine ---------------------------------------------------------------------

# accepted FABRIC: connections that its listeners took
accepted() {
    local json
    json=$(status_json)
    tr -d ' \n' <<<"${json##*\"listeners\"}" | grep -oE "\"$1\"[^}]*\"accepted\":[0-9]+" |
        grep -oE '[0-9]+$' | awk '{ sum += $1 } END { printf "%d", sum }'
}

# One mount by an RDMA device and one by software iWARP, both at work.
mixed() {
    local verbs software pids=() pid
    verbs=$(accepted verbs) software=$(accepted soft-iwarp)
    mount_share vers=3.1.1,rdma
    mkdir -p /mnt/other
    mount -t cifs "//$SOFTWARE/share" /mnt/other -o "user=root,pass=$PASSWORD,vers=3.1.1,rdma,nosharesock"
    (($(accepted verbs) > verbs && $(accepted soft-iwarp) > software))
    "$filecheck" cached "$share/verbs" 1 60 2000000 &
    pids+=($!)
    "$filecheck" cached /mnt/other/software 2 60 2000000 &
    pids+=($!)
    for pid in "${pids[@]}"; do wait "$pid"; done
    # Each sees what the other one has written.
    "$filecheck" fill "$share/both" 3 $((8 * mib)) $mib
    "$filecheck" check /mnt/other/both 3 $((8 * mib)) $mib
    "$filecheck" fill /mnt/other/both 4 $((8 * mib)) $mib
    "$filecheck" check "$share/both" 4 $((8 * mib)) $mib
    rm "$share/verbs" "$share/software" "$share/both"
    umount /mnt/other
    unmount
}

set_mixed() { check mixed mixed; }

# --- signed and sealed sessions: data goes in PDUs -----------------------------------------------

# Linux takes PDUs of 173,910 bytes, and with seal asks for more in one READ if it is let.
protect_sign=sign
protect_seal=seal,rsize=131072

set_protected() {
    local dialect way options
    unset FILECHECK_FLUSH
    for way in sign seal; do
        options=protect_$way
        for dialect in 3.0 3.02 3.1.1; do
            check "data_goes_in_pdus_${way}_$dialect" \
                with "vers=$dialect,rdma,${!options}" data_goes_in_pdus
            check "random_operations_${way}_$dialect" \
                with "vers=$dialect,rdma,${!options}" random_operations 40 12
        done
        options=vers=3.1.1,rdma,${!options}
        check "trees_$way" with $options trees $options
        check "large_file_$way" with $options large_file $options
        check "parallel_files_$way" with $options parallel_files
    done
    check signatures_hold signatures_hold
}

# The client tells of a wrong signature, and takes the response all the same.
signatures_hold() {
    if dmesg | grep -E 'sign fail|signature verification'; then return 1; fi
}

# --- several channels ----------------------------------------------------------------------------

connections_are() { [[ $(server counters) == *" $1" ]]; }

channels() {
    wait_until "$1 channels" connections_are "$1" || {
        sed -n '/Server interfaces/,/MIDs/p' /proc/fs/cifs/DebugData
        return 1
    }
    data_goes_by_rdma
    parallel_files
    random_operations 100 21
    connections_are "$1"
}

# The server tells its four addresses as RDMA capable once it has seen their link.
rdma_is_told() {
    local told
    mount_share vers=3.1.1,rdma
    told=$(grep -c 'Capabilities: rdma' /proc/fs/cifs/DebugData)
    umount "$share"
    ((told == 4))
}

set_channels() {
    local options=vers=3.1.1,rdma,multichannel,max_channels=4
    check rdma_is_told wait_until "four addresses are told" rdma_is_told
    check four_channels with $options channels 4
    check two_channels_3.0 with vers=3.0,rdma,multichannel,max_channels=2 channels 2
    check two_channels_3.02 with vers=3.02,rdma,multichannel,max_channels=2 channels 2
}

# loses CHANNEL HOW: one of four goes, with I/O on all of them. It comes back.
loses() {
    wait_until "four channels" connections_are 4
    survives "$2" "$1"
    wait_until "four channels again" connections_are 4
}

set_lost_channels() {
    local options=vers=3.1.1,rdma,multichannel,max_channels=4
    check rdma_is_told wait_until "four addresses are told" rdma_is_told
    check first_channel_ends with $options loses 1 end-channel
    check third_channel_ends with $options loses 3 end-channel
    check second_channel_is_cut with $options loses 2 cut-channel
}

# --- failures ------------------------------------------------------------------------------------

# has_lines FILE COUNT
has_lines() { (($(wc -l <"$1") >= $2)); }

# What the client's side of the connection and the processes that use it have done. `seen` is what that
# was at the last look, `same` how often it has not changed.
is_at_rest() {
    local now process
    now=$(
        sed -n '/SMBDirect/,/MR mr_ready/p' /proc/fs/cifs/DebugData
        for process in $(pgrep -x 'filecheck|dd'); do
            grep -H ctxt_switches "/proc/$process/status"
        done
    ) 2>/dev/null
    [[ $now == "$seen" ]] || same=0
    seen=$now
    ((++same > 6))
}

# The engine does nothing any more, and the client waits for it: nothing that it sends is lost with the
# engine. Otherwise most guests hang, see README.md.
stand_still() {
    local seen='' same=0
    server pause-engine
    wait_until "the client waits" is_at_rest
}

# survives WHAT...: the server is hit while a file is written, another one is read and files are
# made. The client goes on, and what was acknowledged is there.
survives() {
    local i writer reader maker blocks=400
    "$filecheck" fill "$share/stable" 7 $((32 * mib)) $mib
    "$filecheck" acknowledged "$share/written" 8 $((blocks * 65536)) 65536 >/tmp/acknowledged &
    writer=$!
    for ((i = 0; i < 4; i++)); do "$filecheck" insist "$share/stable" 7 $((32 * mib)) 65536; done &
    reader=$!
    mkdir -p "$share/made"
    # A call may fail when the connection does; it is made again. What a shell writes may fail when
    # the file is closed, and a shell does not look at that.
    for ((i = 0; i < 50; i++)); do
        until dd of="$share/made/$i" conv=fsync <<<$i; do sleep 0.1; done
    done 2>/dev/null &
    maker=$!
    wait_until "some writes" has_lines /tmp/acknowledged $((blocks / 4))
    [[ $1 != restart-engine ]] || stand_still
    server "$@"
    wait $writer
    wait $reader
    wait $maker
    has_lines /tmp/acknowledged $blocks
    "$filecheck" check "$share/written" 8 $((blocks * 65536)) 65536
    for ((i = 0; i < 50; i++)); do grep -qx $i "$share/made/$i"; done
    rm "$share/stable" "$share/written"
    remove_folder "$share/made"
}

# remove_folder FOLDER: a file whose CREATE was answered on a channel that went meanwhile is created
# again by the client, which knows nothing of the first open. That one keeps the file's name until
# the session ends.
remove_folder() {
    ! rm -r "$1" || return 0
    unmount
    mount_share "$mounted_with"
    wait_until "the folder is empty" rmdir "$1"
}

# A server that goes without anything under way.
comes_back() {
    local what=$1
    "$filecheck" fill "$share/idle" 9 $mib 65536
    server "$what"
    "$filecheck" insist "$share/idle" 9 $mib 65536
    rm "$share/idle"
}

set_failures() {
    local plain=vers=3.1.1,rdma what
    for what in kill-child restart-smbd restart-engine; do
        check "idle_$what" with $plain comes_back $what
        check "$what" with $plain survives $what
    done
}
