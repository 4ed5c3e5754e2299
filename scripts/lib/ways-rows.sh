# The ways that scripts/ways goes, and the table of them.
#
# Source it after ways.sh; do not run it.

all_rows() {
    row "-accel tcg,thread=single, 2 vCPUs" leaks plain --smp 2 --accel tcg,thread=single --run workload,leak
    row "-accel tcg,thread=single, 4 vCPUs" leaks plain --smp 4 --accel tcg,thread=single --run workload,leak
    row "-icount shift=auto, 2 vCPUs" leaks plain --smp 2 --run workload,leak -- -icount shift=auto
    row "-icount shift=auto,sleep=off, 4 vCPUs" leaks plain --smp 4 --run workload,leak -- -icount shift=auto,sleep=off
    row "-accel tcg,one-insn-per-tb=on" leaks plain --smp 2 --accel tcg,one-insn-per-tb=on --run leak
    row "-machine pc -cpu max" leaks plain --smp 2 --cpu max --run workload,leak
    row "-snapshot" leaks plain --run leak -- -snapshot
    row "vCPU hot plug and unplug" leaks hotplug_cpu
    row "memory hot plug" leaks hotplug_memory
}

# plain FOLDER ARGUMENT...: boots to the end.
plain() {
    start "$@"
    finish "$1"
}

hotplug_cpu() {
    local folder=$1
    cat >"$folder/cpus" <<'GUEST'
#!/bin/sh
n=0
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    [ ! -e $cpu/online ] || echo 1 >$cpu/online 2>/dev/null
    [ ! -d $cpu ] || n=$((n + 1))
done
echo "cpus: $n, online $(cat /sys/devices/system/cpu/online)"
GUEST
    # Of one package, a kernel that knows no hypervisor here takes those that are missing for broken ones.
    start "$folder" --smp 1,sockets=4,maxcpus=4 --file "$folder/cpus:guest/cpus" --run obey
    see "$folder" "obey: ready" || return
    for n in 1 2 3; do
        monitor "$folder" "device_add qemu64-x86_64-cpu,id=cpu$n,socket-id=$n,core-id=0,thread-id=0"
    done
    sleep 2
    order cpus
    see "$folder" "obey: done cpus"
    order "workload"
    see "$folder" "obey: done workload"
    monitor "$folder" "device_del cpu2"
    sleep 3
    order cpus
    order leak
    see "$folder" "obey: done leak"
    order end
    finish "$folder"
    grep -q 'cpus: 4, online 0-3' "$folder/console" || wrong "$folder" "the vCPUs did not come: $(grep -h 'cpus: ' "$folder/console" | head -n 1)"
}

hotplug_memory() {
    local folder=$1
    cat >"$folder/memory" <<'GUEST'
#!/bin/sh
for block in /sys/devices/system/memory/memory*; do
    grep -q online $block/state && grep -q offline $block/state && echo online_kernel >$block/state
done
echo "memory: $(grep MemTotal /proc/meminfo)"
GUEST
    start "$folder" --smp 2 --memory 256M,slots=4,maxmem=2G --file "$folder/memory:guest/memory" --run obey
    see "$folder" "obey: ready" || return
    order memory
    monitor "$folder" "object_add memory-backend-ram,id=mem1,size=512M"
    monitor "$folder" "device_add pc-dimm,id=dimm1,memdev=mem1"
    sleep 3
    order memory
    order workload
    see "$folder" "obey: done workload"
    order leak
    see "$folder" "obey: done leak"
    order end
    finish "$folder"
}
