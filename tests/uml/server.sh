# shellcheck shell=bash
# What the checks want of the server: asked of the test on the host, or done here if engine and
# smbd run in the guest. To be sourced; SAMBA, PROGRAM and LIBRARY come from the settings.

state=/run/server

# wait_until WHAT COMMAND...: polls for four minutes
wait_until() {
    local what=$1 end=$((SECONDS + 240))
    shift
    until "$@"; do
        if ((SECONDS > end)); then
            echo "not within four minutes: $what"
            return 1
        fi
        sleep 0.05
    done
}

# server counters               prints bytes: RDMA READs, RDMA WRITEs, PDUs in, PDUs out; connections
# server sum FILE               prints the SHA-256 of a file of the share
# server kill-child             SIGKILL to the smbds that serve a client
# server restart-smbd           SIGKILL to all smbds, and a new one
# server end-channel N           ends a client's Nth connection in good order
# server cut-channel N           cuts it off
# server pause-engine           SIGSTOP to the engine
# server restart-engine         SIGKILL to the engine, and a new one
server() {
    local answer
    if [[ $BED != tap ]]; then
        "guest_${1//-/_}" "${@:2}"
        return
    fi
    echo "@@ ask $*" >&4
    read -r answer <&3
    [[ $answer == ok* ]] || {
        echo "$answer"
        return 1
    }
    answer=${answer#ok}
    echo "${answer# }"
}

# --- engine and smbd in the guest -----------------------------------------------------------------

# With software iWARP they have a network namespace of their own. What starts in the background
# does so by these words, not by a function: $! would be a shell.
place=()
[[ $BED != guest ]] || place=(ip netns exec server)
in_server() { "${place[@]}" "$@"; }

status_json() { "$PROGRAM" status --json --socket "$state/engine.sock" 2>/dev/null; }

# sum_of FIELD JSON
sum_of() { grep -oE "\"$1\": ?[0-9]+" <<<"$2" | awk -F: '{ sum += $2 } END { printf "%d", sum }'; }

# As above; a busy machine may keep the engine from answering for a while.
insist_on_status() {
    local try
    for try in {1..12}; do
        ! status_json || return 0
    done
    echo "the engine does not answer, $try times" >&2
    return 1
}

guest_counters() {
    local json
    json=$(insist_on_status) || return 1
    echo "$(sum_of rdma_read_bytes "$json") $(sum_of rdma_write_bytes "$json")" \
        "$(sum_of bytes_received "$json") $(sum_of bytes_sent "$json")" \
        "$(grep -o '"owner_pid": *[0-9]' <<<"${json##*\"connections\"}" | wc -l)"
}

guest_sum() { sha256sum <"$state/share/$1" | cut -d ' ' -f 1; }

# keep_running NAME: what was started last is no job of this shell, or of this check
keep_running() {
    echo $! >"$state/$1.pid"
    disown $!
}

pid_of() { cat "$state/$1.pid"; }

is_gone() { ! kill -0 "$1" 2>/dev/null; }

start_engine() {
    # shellcheck disable=SC2086 # a list of options
    "${place[@]}" "$PROGRAM" engine --socket "$state/engine.sock" $ENGINE_OPTIONS \
        >>"$state/engine.log" 2>&1 &
    keep_running engine
    wait_until "the engine answers" eval 'status_json >/dev/null'
}

start_smbd() {
    "${place[@]}" "$SAMBA/smbd" --foreground --no-process-group --configfile="$state/smb.conf" \
        >>"$state/smbd.out" 2>&1 &
    keep_running smbd
    wait_until "smbd listens for SMB Direct" smbd_is_ready
}

smbd_is_ready() {
    local json
    json=$(status_json) && grep -q '"has_params": *true' <<<"$json" &&
        in_server bash -c "(: </dev/tcp/127.0.0.1/$TCP_PORT) 2>/dev/null"
}

smbd_children() { pgrep -x smbd | grep -vx "$(pid_of smbd)"; }

guest_kill_child() {
    local owners
    owners=$(status_json | grep -oE '"owner_pid": ?[0-9]+' | grep -oE '[0-9]+$' | sort -u)
    owners=$(grep -vxE "0|$(pid_of smbd)" <<<"$owners")
    [[ -n $owners ]] || return 1
    # shellcheck disable=SC2086 # a list of numbers
    kill -KILL $owners
}

# The numbers of connections that have an owner.
connection_ids() {
    local json
    json=$(status_json)
    grep -oE '"id": ?[0-9]+|"owner_pid": ?[0-9]+' <<<"${json##*\"connections\"}" |
        awk -F: '/id"/ && !/owner/ { id = $2 } /owner/ { print id + 0 }'
}

guest_end_channel() {
    "$PROGRAM" disconnect --socket "$state/engine.sock" "$(connection_ids | sed -n "$1p")" "${@:2}"
}

guest_cut_channel() { guest_end_channel "$1" --abort; }

guest_restart_smbd() {
    local pid
    pid=$(pid_of smbd)
    # shellcheck disable=SC2046 # a list of numbers
    kill -KILL "$pid" $(smbd_children)
    wait_until "smbd is gone" is_gone "$pid"
    start_smbd
}

guest_pause_engine() { kill -STOP "$(pid_of engine)"; }

guest_restart_engine() {
    local pid
    pid=$(pid_of engine)
    kill -KILL "$pid"
    wait_until "the engine is gone" is_gone "$pid"
    start_engine
    wait_until "smbd listens for SMB Direct" smbd_is_ready
}

write_configuration() {
    cat >"$state/smb.conf" <<CONF
[global]
    server role = standalone server
    map to guest = Never
    smb ports = $TCP_PORT
    disable netbios = yes
    lock directory = $state/run
    state directory = $state/run
    cache directory = $state/run
    pid directory = $state/run
    private dir = $state/private
    ncalrpc dir = $state/ncalrpc
    smb passwd file = $state/private/smbpasswd
    passdb backend = smbpasswd
    log file = $state/smbd.log
    max log size = 0
    rpc start on demand helpers = false
    disable spoolss = yes
    load printers = no
    printcap name = /dev/null
    smb direct library = $LIBRARY
    smb direct engine socket = $state/engine.sock
$SMB_CONF
[share]
    path = $state/share
    read only = no
CONF
}

make_server_namespace() {
    local address
    ip netns add server
    ip link add veth0 type veth peer name veth1 netns server
    in_server ip link set lo up
    for address in "$SERVER" $MORE_ADDRESSES; do
        in_server ip addr add "$address/24" dev veth1
    done
    in_server ip link set veth1 up
}

start_server_in_guest() {
    mkdir -p "$state"/{run,private,ncalrpc,share}
    chmod 755 "$state"
    write_configuration
    install -m 600 /dev/null "$state/private/smbpasswd"
    printf '%s\n%s\n' "$PASSWORD" "$PASSWORD" |
        "$SAMBA/smbpasswd" -L -c "$state/smb.conf" -s -a root
    start_engine && start_smbd
}

# After a failure, for the console.
show_server() {
    [[ $BED != tap ]] || return 0
    local log
    for log in engine.log smbd.out smbd.log; do
        echo "--- end of $log"
        tail -n 20 "$state/$log"
    done
}
