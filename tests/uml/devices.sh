# shellcheck shell=bash
# What happens to RDMA devices and the wire between them, under `smbdirect ping` in both roles. To be
# sourced; PROGRAM and FABRIC come from the settings.

pong_at=$SERVER:4455
pong_log=/run/pong.log

# The passive side: device 0, and any that comes later.
start_pong() {
    SMBDIRECT_LOG=info "$PROGRAM" ping --listen "verbs:$pong_at" >"$pong_log" 2>&1 &
    pong_pid=$!
    wait_until "ping listens" grep -q '^listening on' "$pong_log"
}

# ping_server [TARGET]: the active side, device 1
ping_server() { "$PROGRAM" ping -n 3 "${@:-verbs:$pong_at}"; }

# check NAME: runs the function check_NAME
check() {
    if "check_$1"; then
        echo "@@ pass $1"
    else
        echo "--- end of the passive side's log"
        tail -n 30 "$pong_log"
        dmesg | tail -n 20
        echo "@@ fail $1"
    fi
}

# --- a peer that does not answer at first ----------------------------------------------------------

neighbour_is_failed() { ip neigh show to "$SERVER" dev veth1 nud failed | grep -q .; }

# The kernel has given up to ask for the peer's hardware address before the peer answers.
check_late_neighbour() {
    local ping
    sysctl -q net.ipv4.neigh.veth1.mcast_solicit=1 net.ipv4.neigh.veth1.retrans_time_ms=100
    ip link set veth0 arp off
    make_routes
    ip neigh flush dev veth1
    ping_server &
    ping=$!
    wait_until "the neighbour has failed" neighbour_is_failed || return
    ip link set veth0 arp on
    make_routes
    wait "$ping"
}

# Nobody has that address: the end names how often it was tried.
check_no_neighbour() {
    local said
    said=$(ping_server "verbs:${SERVER%.*}.99:4455" 2>&1) && return 1
    echo "$said"
    grep -q 'no answer to [1-9][0-9]* attempts' <<<"$said"
}

set_devices() {
    start_pong || exit
    check late_neighbour
    check no_neighbour
    kill "$pong_pid"
}
