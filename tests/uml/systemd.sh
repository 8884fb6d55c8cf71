# shellcheck shell=bash
# The engine by its unit, systemd/smbdirect.service.in, under systemd itself: that is the first process
# of the guest then, and the checks are a service. To be sourced; UNIT, the unit's template, comes from
# the settings.

units=/run/systemd/system
unit_socket=/run/smbdirect/engine.sock

# write_target NAME [LINE...]
write_target() {
    local name=$1
    shift
    printf '[Unit]\nDescription=%s\n' "$name" >"$units/$name.target"
    (($# == 0)) || printf '%s\n' "$@" >>"$units/$name.target"
}

# The first process goes on as systemd, which runs init.sh once more. It knows the engine's unit and what
# that asks for, and none of the host's units: they would want to change the host's files.
become_systemd() {
    local target folder=/run/unit
    mkdir -p "$units/smbdirect.service.d" "$state" "$folder/bin" "$folder/etc/default"
    chmod 755 "$state"
    for target in sysinit basic shutdown network-online; do
        write_target $target
    done
    write_target checks Wants=checks.service AllowIsolate=yes
    cp /lib/systemd/system/modprobe@.service "$units"
    # Where the clone is may be hidden from the engine (ProtectHome=).
    mount --bind "$(dirname "$PROGRAM")" "$folder/bin"
    echo "SMBDIRECT_OPTIONS=$ENGINE_OPTIONS" >"$folder/etc/default/smbdirect"
    sed -e "s|@BINDIR@|$folder/bin|" -e "s|@SYSCONFDIR@|$folder/etc|" "$UNIT" >"$units/smbdirect.service"
    # No journal runs here.
    printf '[Service]\nStandardError=append:%s\n' "$state/engine.log" >"$units/smbdirect.service.d/log.conf"
    cat >"$units/checks.service" <<CHECKS
[Unit]
Description=checks of the guest
DefaultDependencies=no
[Service]
Type=oneshot
TimeoutStartSec=infinity
Environment=UML_FOLDER=$UML_FOLDER
ExecStart=/bin/bash $here/init.sh under-systemd
StandardOutput=file:/dev/console
StandardError=inherit
CHECKS
    # Version 1 of control groups confines devices without BPF.
    exec env SYSTEMD_UNIT_PATH="$units" \
        SYSTEMD_PROC_CMDLINE="systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1" \
        /lib/systemd/systemd --system --unit=checks.target --log-target=kmsg --show-status=0
}

of_unit() { systemctl show --property "$1" --value smbdirect; }

# In place of what server.sh has.
start_unit() {
    ln -sf "$unit_socket" "$state/engine.sock"
    systemctl start smbdirect && wait_until "the engine answers" eval 'status_json >/dev/null'
}

# has_line FILE PATTERN: told if not
has_line() {
    grep -qE "$2" "$1" || {
        echo "no '$2' in $1:"
        cat "$1"
        return 1
    }
}

# lacks_line FILE PATTERN
lacks_line() {
    if grep -E "$2" "$1"; then
        echo "that is in $1"
        return 1
    fi
}

# The engine has a user of its own, one capability, the filter of system calls, RDMA devices and no
# limit of pinned memory.
unit_confines() {
    local process set major devices=/sys/fs/cgroup/devices/system.slice/smbdirect.service/devices.list
    process=/proc/$(of_unit MainPID)
    major=$(awk '$2 == "infiniband_verbs" { print $1 }' /proc/devices)
    has_line "$process/status" '^Uid:\s*[1-9]'
    for set in Inh Prm Eff Bnd Amb; do
        has_line "$process/status" "^Cap$set:\s*0000000000000400\$"
    done
    has_line "$process/status" '^NoNewPrivs:\s*1$'
    has_line "$process/status" '^Seccomp:\s*2$'
    has_line "$process/limits" '^Max locked memory *unlimited *unlimited'
    has_line "$process/limits" '^Max open files *65536 *65536'
    cat "$devices"
    has_line "$devices" "^c $major:\* rw\$"
    lacks_line "$devices" '^a |[*]:|^b [1-9]'
    [[ $(stat -c '%a' "${unit_socket%/*}") == 700 ]]
}

# is_started_again PID: by another one
is_started_again() {
    local now
    now=$(of_unit MainPID)
    ((now != 0 && now != $1)) && smbd_is_ready
}

engine_is_started_again() {
    local before
    before=$(of_unit MainPID)
    kill -KILL "$before"
    wait_until "another engine" is_started_again "$before"
    with vers=3.1.1,rdma data_goes_by_rdma
}

takes_rdma() { grep -qE " $SERVER +yes " <<<"$("$PROGRAM" interfaces --socket "$unit_socket")"; }

# A machine without RDMA devices starts the engine, says so, and uses the first one that comes.
devices_come_later() {
    systemctl stop smbdirect
    remove_device "${FABRIC}1"
    remove_device "${FABRIC}0"
    : >"$state/engine.log"
    start_unit
    [[ $(grep -c 'this machine has no RDMA devices' "$state/engine.log") -eq 1 ]]
    rdma link add "${FABRIC}0" type "$FABRIC" netdev veth0
    rdma link add "${FABRIC}1" type "$FABRIC" netdev veth1
    wait_until "smbd and a device" eval 'smbd_is_ready && takes_rdma'
    with vers=3.1.1,rdma data_goes_by_rdma
}

stops_in_good_order() {
    systemctl stop smbdirect
    [[ $(of_unit Result) == success && $(of_unit ActiveState) == inactive && ! -e $unit_socket ]]
}

set_unit() {
    local plain=vers=3.1.1,rdma
    check unit_confines unit_confines
    check data_goes_by_rdma with $plain data_goes_by_rdma
    check random_operations with $plain random_operations 60 14
    check engine_is_started_again engine_is_started_again
    check devices_come_later devices_come_later
    check stops_in_good_order stops_in_good_order
}
