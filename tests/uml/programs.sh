# shellcheck shell=bash
# Programs of the host that run in the guest, and what they talk to. To be sourced.
#
# FABRIC says over what: `soft-iwarp`, or the kind of an RDMA device, `siw` or `rxe`.

# --- RDMA devices ----------------------------------------------------------------------------------

# add_device NETDEV
add_device() { rdma link add "${FABRIC}0" type "$FABRIC" netdev "$1"; }

# One device with the server's address. Both ends of a connection are on it.
make_device() {
    ip link add dummy0 type dummy
    ip addr add "$SERVER/24" dev dummy0
    ip link set dummy0 up
    add_device dummy0
}

# Two devices, server's and client's, at the two ends of a pair. They are in one namespace, since
# rxe, cifs.ko and ksmbd know only the first one; without these rules a packet from one to the other
# would never leave.
make_wire() {
    local address device
    case $WIRE in
    switch) make_switch ;;
    *) ip link add veth0 type veth peer name veth1 ;;
    esac
    for address in "$SERVER" $MORE_ADDRESSES; do
        ip addr add "$address/24" dev veth0
    done
    ip addr add "$CLIENT/24" dev veth1
    for device in veth0 veth1; do
        sysctl -q "net.ipv4.conf.$device.accept_local=1" "net.ipv4.conf.$device.rp_filter=0"
        ip link set "$device" up
    done
    ip rule add pref 10 iif veth1 to "$CLIENT" lookup local
    ip rule add pref 20 to "$CLIENT" lookup 101
    for address in "$SERVER" $MORE_ADDRESSES; do
        ip rule add pref 10 iif veth0 to "$address" lookup local
        ip rule add pref 20 to "$address" lookup 102
    done
    ip rule add pref 30 lookup local
    ip rule del pref 0
    make_routes
    for device in 0 1; do
        rdma link add "$FABRIC$device" type "$FABRIC" netdev "veth$device"
    done
}

# A switch with `port0` and `port1`, from which either end can be unplugged.
make_switch() {
    local end
    ip link add switch type bridge
    for end in 0 1; do
        ip link add veth$end type veth peer name port$end
        ip link set port$end master switch up
    done
    ip link set switch up
}

# They go when an interface is set down.
make_routes() {
    local address
    ip route replace "$CLIENT" dev veth0 src "$SERVER" table 101
    for address in "$SERVER" $MORE_ADDRESSES; do
        ip route replace "$address" dev veth1 src "$CLIENT" table 102
    done
}

# How a program with software iWARP sees the device `siw0` of the guest: from a network namespace of
# its own, at the other end of a pair.
make_client_namespace() {
    ip netns add client
    ip link add veth0 type veth peer name veth1 netns client
    ip addr add "$SERVER/24" dev veth0
    ip link set veth0 up
    ip -n client link set lo up
    ip -n client addr add "$CLIENT/24" dev veth1
    ip -n client link set veth1 up
    rdma link add siw0 type siw netdev veth0
    in_place=(ip netns exec client)
}

# --- the kernel's server ---------------------------------------------------------------------------

ksmbd_share=/run/ksmbd/share

ksmbd_listens() { rdma resource show cm_id | grep -q 'state LISTEN'; }

# Its tools have had other options in each version, but always these files.
start_ksmbd() {
    in_place=()
    case $FABRIC in
    soft-iwarp) make_client_namespace ;;
    *) make_wire ;;
    esac
    mkdir -p "$ksmbd_share"
    mount -t tmpfs tmpfs /etc/ksmbd || return
    cat >/etc/ksmbd/ksmbd.conf <<CONF
[global]
    server multi channel support = yes
    smb2 max read = 8MB
    smb2 max write = 8MB
    smbd max io size = 8MB
[share]
    path = $ksmbd_share
    read only = no
CONF
    ksmbd.adduser -a root -p "$PASSWORD" && ksmbd.mountd &&
        wait_until "ksmbd listens for SMB Direct" ksmbd_listens
}

# Runs test TEST of the host's test program TEST_PROGRAM, which tells of each of its parts itself.
set_ksmbd() {
    case $FABRIC in
    soft-iwarp) export SMBDIRECT_TEST_FABRIC=$FABRIC ;;
    *) export SMBDIRECT_TEST_FABRIC=verbs SMBDIRECT_TEST_DEVICE=$FABRIC ;;
    esac
    SMBDIRECT_TEST_KSMBD=$SERVER SMBDIRECT_TEST_SHARE=$ksmbd_share \
        "${in_place[@]}" "$TEST_PROGRAM" --exact "$TEST" --nocapture >&4 2>&1 || {
        dmesg | tail -n 40
        echo "@@ fail $TEST"
    }
}

# --- tests of the host -----------------------------------------------------------------------------

# check_program NAME COMMAND...: one line for the test, before it loses its patience (PATIENCE of
# tests/common/uml.rs)
check_program() {
    local name=$1 start=$SECONDS
    shift
    if timeout -k 5 540 "$@"; then
        echo "--- $name: $((SECONDS - start)) s"
        echo "@@ pass $name"
    else
        dmesg | tail -n 20
        echo "@@ fail $name"
    fi
}

# tests_of PROGRAM [ARGUMENT...]: the names of a test program's tests
tests_of() { "$@" --list --format terse | sed -n 's/: test$//p'; }

# Runs the lines of TESTS: the label of a test program, its path, and arguments that select tests of
# it; or a label, the word `exec`, and a command.
set_tests() {
    local label program arguments name
    # RDMA memory is pinned; also for the users that tests make.
    ulimit -l unlimited
    export SMBDIRECT_PROGRAM SMBDIRECT_LIBRARY SMBDIRECT_TEST_SAMBA
    export SMBDIRECT_TEST_ADDRESS=$SERVER SMBDIRECT_TEST_FABRIC=verbs SMBDIRECT_TEST_RDMA=1
    export SMBDIRECT_TEST_DEVICE=$FABRIC
    export SMBDIRECT_TORMENT_ROUNDS
    [[ -z ${SMBDIRECT_TEST_CLIENT-} ]] || export SMBDIRECT_TEST_CLIENT
    while read -r label program arguments; do
        [[ -n $label ]] || continue
        if [[ $program == exec ]]; then
            # shellcheck disable=SC2086 # a command
            check_program "$label" $arguments </dev/null
            continue
        fi
        # shellcheck disable=SC2086 # a list of arguments
        for name in $(tests_of "$program" $arguments); do
            check_program "$label::$name" "$program" --exact "$name" --nocapture </dev/null
        done
    done <<<"$TESTS"
}
