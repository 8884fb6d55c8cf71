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

# check_device NAME: runs the function check_NAME
check_device() {
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

# --- ports -----------------------------------------------------------------------------------------

# Both sides know the port by their device ([MS-SMBD] 1.9).
check_port_by_device() {
    local pong result=0 log=/run/port.log port=445
    [[ $FABRIC != siw ]] || port=5445
    "$PROGRAM" ping --listen "verbs:$SERVER" --once >"$log" 2>&1 &
    pong=$!
    wait_until "ping listens" grep -q "^listening on $SERVER:$port\$" "$log" &&
        ping_server "verbs:$SERVER" || result=1
    kill "$pong" 2>/dev/null
    wait "$pong"
    return "$result"
}

# --- rights ----------------------------------------------------------------------------------------

# A user without rights, with what systemd/smbdirect.service has for the engine: the port of the
# device, and memory to pin. Only to be started in the background, as it replaces the shell.
as_in_the_unit() {
    ulimit -l unlimited
    exec setpriv --reuid 54330 --regid 54330 --clear-groups --no-new-privs \
        --bounding-set -all,+net_bind_service --inh-caps -all,+net_bind_service \
        --ambient-caps -all,+net_bind_service "$@"
}

# One that has no rights at all.
as_nobody() { setpriv --reuid 54331 --regid 54331 --clear-groups --inh-caps -all "$@"; }

# Both sides without root. What they lack is told with its cure.
check_unprivileged() {
    local pong said result=0 log=/run/unit.log
    as_in_the_unit "$PROGRAM" ping --listen "verbs:$SERVER" --once >"$log" 2>&1 &
    pong=$!
    (ulimit -l 65536 && as_nobody "$PROGRAM" ping -n 3 "verbs:$pong_at") &&
        wait_until "ping listens" grep -q "^listening on $SERVER" "$log" &&
        (ulimit -l 65536 && as_nobody "$PROGRAM" ping -n 3 "verbs:$SERVER") || result=1
    kill "$pong" 2>/dev/null
    wait "$pong"
    said=$(ulimit -l 65536 && as_nobody "$PROGRAM" ping --listen "verbs:$SERVER:445" 2>&1) && result=1
    echo "$said"
    grep -q CAP_NET_BIND_SERVICE <<<"$said" || result=1
    said=$(ulimit -l 1024 && as_nobody "$PROGRAM" ping "verbs:$pong_at" 2>&1) && result=1
    echo "$said"
    grep -q 'RLIMIT_MEMLOCK is 1024 KiB' <<<"$said" || result=1
    return "$result"
}

# --- addresses that move ---------------------------------------------------------------------------

# move_server FROM TO: the address of the passive side goes to another interface of the switch
move_server() {
    ip addr del "$SERVER/24" dev "$1"
    ip addr add "$SERVER/24" dev "$2"
    ip rule del pref 10 iif "$1" to "$SERVER"
    ip rule add pref 10 iif "$2" to "$SERVER" lookup local
    ip route replace "$CLIENT" dev "$2" src "$SERVER" table 101
    ip neigh flush dev veth1
}

listens_on() { [[ $(grep 'verbs: listening on' "$pong_log" | tail -n 1) == *"($1)" ]]; }

# A listener takes connections on the device that has its address now.
check_address_moves() {
    ip link add veth2 type veth peer name port2
    ip link set port2 master switch up
    # Only the interface that has the address answers for it.
    sysctl -q net.ipv4.conf.veth2.accept_local=1 net.ipv4.conf.veth2.rp_filter=0 \
        net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.veth0.promote_secondaries=1
    ip link set veth2 up
    rdma link add "${FABRIC}2" type "$FABRIC" netdev veth2
    move_server veth0 veth2
    wait_until "ping listens on the other device" listens_on "${FABRIC}2" && ping_server || return
    move_server veth2 veth0
    wait_until "ping listens on the first device" listens_on "${FABRIC}0" && ping_server || return
    remove_device "${FABRIC}2"
    ip link del veth2
}

# --- links and devices that go and come back -------------------------------------------------------

# has_said PATTERN [COUNT]: lines of the passive side's log
has_said() { (($(grep -cE "$1" "$pong_log") >= ${2:-1})); }

check_link_down_and_up() {
    ip link set veth0 down
    wait_until "the port is down" has_said "${FABRIC}0: port 1 is down" || return
    ip link set veth0 up
    make_routes
    wait_until "the port is up" has_said "${FABRIC}0: port 1 is up" && ping_server
}

# Starts to ping until something ends it.
start_long_ping() {
    local before
    before=$(grep -c ': connected,' "$pong_log")
    "$PROGRAM" ping "verbs:$pong_at" -n 1000000 -i 0.05 >/run/ping.log 2>&1 &
    long_ping=$!
    wait_until "ping is connected" has_said ': connected,' $((before + 1))
}

has_ended() { ! kill -0 "$1" 2>/dev/null; }

# The kernel waits until everybody has let go of the device.
remove_device() {
    rdma link del "$1" &
    wait_until "$1 is removed" has_ended $!
}

# Once more than `listened` lines say so.
listens_again() { has_said "verbs: listening on $pong_at" $((listened + $1)); }

# The connection ends, the device comes back, and the listener takes it.
check_device_removed() {
    start_long_ping && remove_device "${FABRIC}0" || return
    wait "$long_ping" && return 1
    wait_until "the passive side tells why" \
        has_said "connection ended: .*RDMA device ${FABRIC}0 was removed" || return
    rdma link add "${FABRIC}0" type "$FABRIC" netdev veth0
    wait_until "ping listens again" listens_again 1 && ping_server
}

# The device of the active side, then the last one of all.
check_last_device_removed() {
    start_long_ping && remove_device "${FABRIC}1" || return
    wait "$long_ping" && return 1
    cat /run/ping.log
    grep -q "RDMA device ${FABRIC}1 was removed" /run/ping.log || return
    remove_device "${FABRIC}0" || return
    rdma link add "${FABRIC}0" type "$FABRIC" netdev veth0
    rdma link add "${FABRIC}1" type "$FABRIC" netdev veth1
    wait_until "ping listens again" listens_again 2 && ping_server
}

set_devices() {
    start_pong || exit
    check_device late_neighbour
    check_device no_neighbour
    check_device port_by_device
    check_device unprivileged
    check_device address_moves
    check_device link_down_and_up
    listened=$(grep -c "verbs: listening on $pong_at" "$pong_log")
    check_device device_removed
    check_device last_device_removed
    kill "$pong_pid"
}
