# shellcheck shell=bash
# What tests/uml_bench.rs and tests/verbs_bench.rs measure, seen from the client. To be sourced.

by_tcp=/mnt/tcp

# run_fio FOLDER SIZE DEPTH DIRECTION SECONDS: leaves its result in a file for the host
run_fio() {
    local pattern=$4
    [[ $2 != 4k ]] || pattern=rand$pattern
    fio --name=bench --filename="$1/bench" --size="$BENCH_BYTES" --bs="$2" --iodepth="$3" \
        --rw="$pattern" --direct=1 --ioengine=libaio --fallocate=none --thread \
        --eta=never --time_based --runtime="$5" --output-format=json --output=/mnt/host/fio.json
}

# measure WAY FOLDER SIZE DEPTH DIRECTION: once as it is, once with the server's calls counted
measure() {
    server begin
    run_fio "$2" "$3" "$4" "$5" "$BENCH_SECONDS"
    server took "$1" "$3" "$4" "$5"
    server trace
    run_fio "$2" "$3" "$4" "$5" 1
    server traced "$1" "$3" "$4" "$5"
}

# Both ways stay mounted, so that a number of one comes right after that of the other.
measurements() {
    local size depth direction
    mount_share vers=3.1.1,cache=none,rdma
    mkdir -p $by_tcp
    mount -t cifs "//$SERVER/tcp" $by_tcp \
        -o "user=root,pass=$PASSWORD,vers=3.1.1,cache=none,port=$TCP_PORT,nosharesock"
    for size in 1m 64k 4k; do
        for depth in 1 16; do
            for direction in read write; do
                measure tcp $by_tcp $size $depth $direction
                measure rdma "$share" $size $depth $direction
            done
        done
    done
    umount $by_tcp
    unmount
}

set_bench() {
    check measurements measurements
}

# --- tests/verbs_bench.rs: everything in the guest -------------------------------------------------

# make_pair INDEX KIND: like `make_wire`, with addresses 10.77.INDEX.1 of the server, and .3, a second
# one without a device, and 10.77.INDEX.2 of the client.
make_pair() {
    local index=$1 kind=$2 server=veth$((2 * $1)) client=veth$((2 * $1 + 1)) address device
    ip link add "$server" type veth peer name "$client"
    ip addr add "10.77.$index.1/24" dev "$server"
    ip addr add "10.77.$index.3/24" dev "$server"
    ip addr add "10.77.$index.2/24" dev "$client"
    for device in "$server" "$client"; do
        sysctl -q "net.ipv4.conf.$device.accept_local=1" "net.ipv4.conf.$device.rp_filter=0"
        ip link set "$device" mtu "$MTU" up
    done
    for address in "10.77.$index.1" "10.77.$index.3"; do
        ip rule add pref 10 iif "$server" to "$address" lookup local
        ip rule add pref 20 to "$address" lookup $((110 + index))
        ip route add "$address" dev "$client" src "10.77.$index.2" table $((110 + index))
    done
    address=10.77.$index.2
    ip rule add pref 10 iif "$client" to "$address" lookup local
    ip rule add pref 20 to "$address" lookup $((120 + index))
    ip route add "$address" dev "$server" src "10.77.$index.1" table $((120 + index))
    rdma link add "${kind}0" type "$kind" netdev "$server"
    rdma link add "${kind}1" type "$kind" netdev "$client"
}

make_pairs() {
    make_pair 0 rxe
    make_pair 1 siw
    ip rule add pref 30 lookup local
    ip rule del pref 0
    start_server_in_guest || return
    local address
    for address in 10.77.0.1 10.77.1.1 10.77.1.3; do
        wait_until "the server can be reached" \
            eval "(: </dev/tcp/$address/$TCP_PORT) 2>/dev/null"
    done
}

bench_fabric() {
    "$PROGRAM" bench --only fabric --address 10.77.0.1 --address 10.77.1.1 --calls \
        --repeat 3 --slice 0.2 >/mnt/host/fabric.md
}

bench_our_client() {
    local address rdma=()
    for address in $RDMA; do
        rdma+=(--rdma "$address")
    done
    SMBDIRECT_PASSWORD=$PASSWORD "$PROGRAM" bench --smb //10.77.1.1/share --user root \
        --tcp "10.77.1.1:$TCP_PORT" "${rdma[@]}" \
        --cpu-of "$(pid_of engine)" --cpu-of "$(pid_of smbd)" \
        --bytes 16M --iters 500 --repeat 3 --json >/mnt/host/smb.json
}

# Processor time of engine and smbds in ticks.
server_ticks() {
    local pid sum=0 fields
    for pid in "$(pid_of engine)" "$(pid_of smbd)" $(pgrep -P "$(pid_of smbd)"); do
        # The name may have blanks.
        read -r -a fields < <(sed 's/(.*)/name/' "/proc/$pid/stat")
        sum=$((sum + fields[13] + fields[14]))
    done
    echo "$sum"
}

# mount_way WAY ADDRESS OPTIONS
mount_way() {
    mkdir -p "/mnt/$1"
    mount -t cifs "//$2/share" "/mnt/$1" \
        -o "user=root,pass=$PASSWORD,vers=3.1.1,cache=none,nosharesock,$3"
}

# bench_kernel_client SIZE
bench_kernel_client() {
    local depth direction round way before hertz
    hertz=$(getconf CLK_TCK)
    mount_way tcp 10.77.1.1 "port=$TCP_PORT"
    mount_way soft 10.77.1.3 rdma
    mount_way rxe 10.77.0.1 rdma
    mount_way siw 10.77.1.1 rdma
    head -c "$BENCH_BYTES" /dev/urandom >"$state/share/bench"
    for depth in 1 16; do
        for direction in read write; do
            for ((round = 0; round < BENCH_ROUNDS; round++)); do
                for way in tcp soft rxe siw; do
                    before=$(server_ticks)
                    run_fio "/mnt/$way" "$1" $depth $direction "$BENCH_SECONDS"
                    echo "$way $1 $depth $direction $round" "$(awk \
                        "BEGIN { print ($(server_ticks) - $before) / $hertz }")" >>/mnt/host/cpu
                    mv /mnt/host/fio.json \
                        "/mnt/host/fio-$way-$1-$depth-$direction-$round.json"
                done
            done
        done
    done
    rm "$state/share/bench"
    umount /mnt/{tcp,soft,rxe,siw}
}

set_verbs_bench() {
    local size
    check fabric bench_fabric
    check our_client bench_our_client
    for size in 1m 64k 4k; do
        check "kernel_client_$size" bench_kernel_client $size
    done
}
