# shellcheck shell=bash
# A wire with faults between the kernel's client and smbd, in the bed `verbs`. To be sourced.
#
# RoCE repairs what is lost by itself, and gives a connection up when the peer does not answer seven
# times; over iWARP that is TCP's business. Nothing here waits for a time: what has to have happened
# is read from counters.

# wire_is DEVICE FAULT...: what happens to packets that leave by it
wire_is() { tc qdisc replace dev "$1" root netem limit 10000 "${@:2}"; }

both_ways() {
    wire_is veth0 "$@"
    wire_is veth1 "$@"
}

wire_is_good() {
    local end
    for end in 0 1; do
        ! tc qdisc show dev veth$end | grep -q netem || tc qdisc del dev veth$end root
        ip link set port$end up
    done
}

# dropped DEVICE: packets that netem took
dropped() { tc -s qdisc show dev "$1" | grep -oE 'dropped [0-9]+' | awk '{ sum += $2 } END { printf "%d", sum }'; }

# device_count NAME DEVICE...: a counter of rxe devices
device_count() {
    local device
    for device in "${@:2}"; do
        cat "/sys/class/infiniband/$FABRIC$device/ports/1/hw_counters/$1"
    done | awk '{ sum += $1 } END { printf "%d", sum }'
}

# tcp_count NAME...: of all connections, those of siw among them
tcp_count() { nstat -asz "$@" | awk '!/^#/ { sum += $2 } END { printf "%d", sum }'; }

# What the ends of connections had to do again, or found out of order.
repairs() {
    case $FABRIC in
    rxe)
        echo $(($(device_count completer_retry_err 0 1) + $(device_count out_of_seq_request 0 1) + \
            $(device_count duplicate_request 0 1)))
        ;;
    siw) tcp_count TcpRetransSegs TcpExtTCPOFOQueue TcpInErrs ;;
    esac
}

# retries END...: how often an end has asked again because nothing came, 0 the server, 1 the client. Of
# TCP that is known of both together.
retries() {
    case $FABRIC in
    rxe) device_count completer_retry_err "$@" ;;
    siw) tcp_count TcpExtTCPTimeouts ;;
    esac
}

# more_than NUMBER COMMAND...
more_than() { (($("${@:2}") > $1)); }

ended() { sum_of connections_ended "$(status_json)"; }

# --- the fault of rxe -----------------------------------------------------------------------------

# note_rxe NAME: where things stand when a check begins, for rxe_failed. Sets in which connections are
# ended on purpose have no such excuse.
note_rxe() {
    rxe_check=''
    [[ $BED == verbs && $FABRIC == rxe ]] || return 0
    case $SET in failures | lost_channels | cut) return 0 ;; esac
    rxe_check=$1 rxe_retries=$(retries 1) rxe_lines=$(wc -l <"$state/engine.log")
    echo "check $1" >/dev/kmsg
}

# What the engine has told of ends since the check began.
rxe_ends() { tail -n +$((rxe_lines + 1)) "$state/engine.log" | grep -E "$an_end"; }

# The client's queue pair has failed in this check by the fault of rxe that README.md tells of, and the
# client did not hang: it had to send again, its sends were flushed, and it closed the connection, as it
# closed any other one; the engine ended none.
rxe_failed() {
    [[ -n $rxe_check ]] && more_than "$rxe_retries" retries 1 || return
    dmesg | sed -n "/ check $rxe_check\$/,\$p" | grep -q 'send_done.*wc->status=5' || return
    wait_until "an end" rxe_ends && ! rxe_ends | grep -v 'closed by the peer'
}

# --- faults that a connection survives ------------------------------------------------------------

# by_one_connection COMMAND...: none has ended meanwhile
by_one_connection() {
    local before
    before=$(ended)
    "$@"
    [[ $(ended) == "$before" ]]
}

# goes_on FAULT...: data stays what it is
goes_on() {
    local repairs
    repairs=$(repairs)
    both_ways "$@"
    "$filecheck" fill "$share/trouble" 1 $((4 * mib)) $mib
    "$filecheck" check "$share/trouble" 1 $((4 * mib)) $mib
    random_operations 20 31
    tc -s qdisc show dev veth0
    echo "repairs: $(($(repairs) - repairs))"
    wait_until "a repair" more_than "$repairs" repairs
    wire_is_good
    # Once more without, which a connection in a bad state does not do.
    "$filecheck" check "$share/trouble" 1 $((4 * mib)) $mib
    rm "$share/trouble"
}

# until_one_asks_again COMMAND...: what lets nothing through is taken back (by wire_is_good) as soon as
# an end has asked again. Which one has something outstanding is chance.
until_one_asks_again() {
    local before
    before=$(retries 0 1)
    "$@"
    wait_until "an end asks again" more_than "$before" retries 0 1
    wire_is_good
}

# delayed DEVICE: bytes that netem has let through, or holds back
delayed() { tc -s qdisc show dev "$1" | grep -A 1 netem | grep -oE 'Sent [0-9]+' | awk '{ print $2 }'; }

# A long wire
is_slow() {
    both_ways "$@"
    "$filecheck" fill "$share/trouble" 1 $((16 * mib)) $mib
    "$filecheck" check "$share/trouble" 1 $((16 * mib)) $mib
    random_operations 20 31
    tc -s qdisc show dev veth0
    (($(delayed veth0) > 16 * mib && $(delayed veth1) > 16 * mib))
    wire_is_good
    rm "$share/trouble"
}

guest_cut_shortly() {
    until_one_asks_again both_ways loss 100%
}

# lost_carrier END
lost_carrier() { [[ $(<"/sys/class/net/veth$1/carrier") == 0 ]]; }

# unplug END: its port of the switch has no link any more
unplug() {
    ip link set "port$1" down
    wait_until "device $1 has no carrier" lost_carrier "$1"
}

# guest_unplug END: 0 the server, 1 the client
guest_unplug() { until_one_asks_again unplug "$1"; }

# --- a wire that stays cut ------------------------------------------------------------------------
#
# The kernel's client does not come back from that over rxe (README.md), so the client is `smbclient`
# with `smbdirect proxy`.

download() {
    smbclient //127.0.0.1/share --configfile=/dev/null --port 4450 -U "root%$PASSWORD" \
        -c 'get large /tmp/large'
}

sent() { sum_of bytes_sent "$(status_json)"; }

# How the engine tells of the end of a connection.
an_end='connection [0-9]+ with .* ended'

# ends_for REASON: the engine has told it of the connection that ended last
ends_for() {
    local line
    line=$(grep -E "$an_end" "$state/engine.log" | tail -n 1)
    echo "$line"
    grep -qE "$1" <<<"$line"
}

# Nothing gets through until the server gives up. What the client says does, as long as the server may
# have nothing outstanding, because it waits for credits. smbd goes on.
cut_while_sending() {
    local ended before client
    : >/run/proxy.log
    "$PROGRAM" proxy --listen 127.0.0.1:4450 --connect "verbs:$SERVER" >/run/proxy.log 2>&1 &
    wait_until "the proxy listens" grep -q '^listening on' /run/proxy.log
    dd if=/dev/urandom of="$state/share/large" bs=1M count=128 status=none
    ended=$(ended)
    download &
    client=$!
    wait_until "some of the file" more_than $((4 * mib)) sent
    before=$(retries 0)
    wire_is veth0 loss 100%
    wait_until "the server asks again" more_than "$before" retries 0
    wire_is veth1 loss 100%
    wait_until "the connection ends" more_than "$ended" ended
    (($(dropped veth0) > 0))
    wire_is_good
    ends_for 'the peer does not answer \(retries exceeded\)'
    wait_until "the client learns of it" is_gone $client || {
        cat /run/proxy.log
        return 1
    }
    if wait $client; then
        echo "the client takes a part of the file for all of it"
        return 1
    fi
    download
    cmp /tmp/large "$state/share/large"
    rm /tmp/large "$state/share/large"
}

set_cut() { check cut_while_sending cut_while_sending; }

# Over iWARP TCP has the work, and tests of its own: less is done there. Over rxe a connection does not
# always outlive that an end is unplugged, nor that something is sent again while the client registers
# memory (README.md); signed, the client registers none.
set_trouble() {
    local plain=vers=3.1.1,rdma
    check delay with $plain by_one_connection is_slow delay 5ms
    check corruption with $plain by_one_connection goes_on corrupt 1%
    if [[ $FABRIC == siw ]]; then
        check client_unplugged with $plain by_one_connection survives unplug 1
    else
        check loss with $plain by_one_connection goes_on loss 1%
        check reordering with $plain by_one_connection goes_on delay 200us reorder 0.3%
        check cut_shortly with $plain,sign by_one_connection survives cut-shortly
    fi
    check data_goes_by_rdma with $plain data_goes_by_rdma
}
