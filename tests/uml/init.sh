#!/bin/bash
# The first process of the guest: makes it usable, runs one set of checks and powers off. With a unit to
# run it becomes systemd instead, which runs it again, with `under-systemd`, as a service (systemd.sh).
#
# Its root is the host's file system, read only; UML_FOLDER, given on the kernel's command line, is
# the test's folder on the host with a file `settings`. The console carries lines for the test:
#   @@ pass NAME       a check was good
#   @@ fail NAME       it was not; what it said stands before
#   @@ ask WORDS       the host shall do something and answer with a line
#   @@ stuck           the client hangs by a fault of its own; the guest ends
#   @@ end             that was all; without it the set was not done to its end
# Everything else is for whoever has to find out what went wrong.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ LC_ALL=C
here=$(dirname "$0")
project=${here%/tests/uml}
# Lines go in and out as they are.
[[ ! -t 0 ]] || stty -echo -onlcr
exec 3<&0 4>&1 2>&1 </dev/null

power_off() {
    sync
    power_off_at_once
}
# On a mount that hangs, `sync` does, too.
power_off_at_once() {
    echo o >/proc/sysrq-trigger
    # init must not end
    while :; do sleep 60; done
}
mount_all() {
    mount -t proc proc /proc || power_off
    mount -t sysfs sysfs /sys
    # `ip netns exec` copies all mounts; those that end here have to end there, too.
    mount --make-rshared /
    mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
    for folder in /run /tmp /mnt; do
        mount -t tmpfs tmpfs "$folder"
    done
    [[ -e /dev/fd ]] || ln -s /proc/self/fd /dev/fd
    # A checkout below one of these is to be seen all the same.
    [[ -e $here/init.sh ]] || {
        mkdir -p "$project" && mount -r -t hostfs -o "$project" none "$project" || power_off
    }
    mkdir -p /dev/shm /mnt/share /mnt/host
    mount -t tmpfs tmpfs /dev/shm
    # This part of the host can be written.
    mount -t hostfs -o "$UML_FOLDER" none /mnt/host
}
under_systemd=${1:-}
[[ $under_systemd ]] || mount_all
trap power_off EXIT
# shellcheck source=/dev/null
. /mnt/host/settings
# shellcheck source=tests/uml/server.sh
. "$here/server.sh"
# shellcheck source=tests/uml/checks.sh
. "$here/checks.sh"
# shellcheck source=tests/uml/bench.sh
. "$here/bench.sh"
# shellcheck source=tests/uml/programs.sh
. "$here/programs.sh"
# shellcheck source=tests/uml/devices.sh
. "$here/devices.sh"
# shellcheck source=tests/uml/trouble.sh
. "$here/trouble.sh"
# shellcheck source=tests/uml/systemd.sh
. "$here/systemd.sh"
cd / || exit

start_server() {
    start_server_in_guest || {
        show_server
        exit
    }
}
run_set() {
    "set_$SET"
    echo "@@ end"
    exit
}

ip link set lo up
device=''
case $BED in
ksmbd)
    start_ksmbd || exit
    run_set
    ;;
device | wire | pairs)
    "make_$BED" || exit
    run_set
    ;;
tap) device=vec0 ;;
guest)
    device=veth0
    make_server_namespace
    start_server
    ;;
verbs)
    # The server has device 0, the client device 1.
    [[ $under_systemd ]] || make_wire || exit
    if [[ $UNIT ]]; then
        [[ $under_systemd ]] || become_systemd
        start_engine() { start_unit; }
    fi
    start_server
    ;;
esac
if [[ -n $device ]]; then
    ip addr add "$CLIENT/24" dev "$device"
    ip link set "$device" up
    rdma link add siw0 type siw netdev "$device"
fi
# The kernel's client has one address resolved only once, and shortly. The port of that probe is none
# that rdma_cm may choose afterwards: it does not ask TCP, which keeps the port for a minute.
sysctl -q net.ipv4.ip_local_port_range="32768 39999"
wait_until "the server can be reached" eval "(: </dev/tcp/$SERVER/$TCP_PORT) 2>/dev/null"
sysctl -q net.ipv4.ip_local_port_range="40000 60999"
run_set
