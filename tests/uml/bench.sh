# shellcheck shell=bash
# What tests/uml_bench.rs measures, seen from the client. To be sourced.

by_tcp=/mnt/tcp

# run_fio FOLDER SIZE DEPTH DIRECTION SECONDS: leaves its result in a file for the host
run_fio() {
    local pattern=$4
    [[ $2 != 4k ]] || pattern=rand$pattern
    fio --name=bench --filename="$1/bench" --size="$BENCH_BYTES" --bs="$2" --iodepth="$3" \
        --rw="$pattern" --direct=1 --ioengine=libaio --fallocate=none --thread \
        --time_based --runtime="$5" --output-format=json --output=/mnt/host/fio.json
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
