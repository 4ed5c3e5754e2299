# The ways to run QEMU that scripts/ways tries, and the table of them.
#
# Source it after ways.sh; do not run it.

all_rows() {
    local twenty="--smp 2 --run workload,leak"
    row "-accel tcg,thread=single, 2 vCPUs" leaks plain --accel tcg,thread=single $twenty
    row "-accel tcg,thread=single, 4 vCPUs" leaks plain --accel tcg,thread=single $twenty --smp 4
    row "-icount shift=auto, 2 vCPUs" leaks plain $twenty -- -icount shift=auto
    row "-icount shift=auto,sleep=off, 4 vCPUs" leaks plain $twenty --smp 4 -- -icount shift=auto,sleep=off
    row "-accel tcg,one-insn-per-tb=on" leaks plain --smp 2 --accel tcg,one-insn-per-tb=on --run leak
    row "-accel tcg,tb-size=8" leaks plain --accel tcg,tb-size=8 $twenty
    row "record and replay (-icount rr=)" leaks record_replay
    row "-loadvm" leaks from_snapshot --smp 2
    row "loadvm of another boot" leaks other_boot
    row "suspend to RAM, and system_wakeup" leaks suspended
    row "migration out, and on" leaks migrated_out
    row "migration out, while scans are made" leaks migrated_out scan=1,min-age=0,
    row "migration in (-incoming)" leaks migrated_in
    row "-snapshot" leaks plain --smp 2 --run leak -- -snapshot
    row "vCPUs plugged in and out" leaks hotplug_cpu
    row "memory plugged in (pc-dimm)" leaks hotplug_memory
    row "memory plugged out, while scans are made" leaks unplug_memory
    row "virtio-mem" leaks virtio_mem
    row "virtio-balloon, free page reporting" leaks balloon
    row "virtio-balloon, huge pages" leaks balloon_huge
    row "NUMA: anonymous, memfd and file memory" leaks numa
    row "-machine memory-backend=, shared, preallocated" leaks plain $twenty --machine pc,memory-backend=ram -- \
        -object memory-backend-memfd,id=ram,size=512M,share=on,prealloc=on
    row "-mem-path, -mem-prealloc" leaks plain $twenty -- -mem-path /dev/shm -mem-prealloc
    row "-machine q35" leaks plain $twenty --machine q35
    row "-machine microvm" leaks plain_microvm
    row "8 vCPUs, 6 GiB" leaks plain $twenty --smp 8 --memory 6144
    row "UEFI (OVMF), -kernel" leaks uefi
    row "UEFI (OVMF), GRUB from a disk" leaks uefi --loader grub
    row "BIOS, GRUB from a disk" leaks plain $twenty --loader grub
    row "-cpu max" leaks plain $twenty --cpu max
    row "-cpu EPYC" leaks plain $twenty --cpu EPYC
    row "-cpu Nehalem" leaks plain $twenty --cpu Nehalem
    row "-cpu kvm64" leaks plain $twenty --cpu kvm64
    row "a guest's guest (-cpu max,+svm)" leaks nested
    row "a guest's guest, without nested paging" leaks nested npt=0
    row "-S, then cont" leaks stopped_at_start
    row "a debugger (-gdb)" leaks debugger
    row "-no-shutdown, then quit" leaks no_shutdown
    row "-action reboot=shutdown" leaks plain --smp 2 --append libleak.off=reboot --run leak -- -action reboot=shutdown
    row "guest panic" leaks panics
    row "guest panic, -device pvpanic" leaks panics -device pvpanic
    row "guest panic, -action panic=pause" leaks panics_and_pauses
    row "SIGTERM under load" leaks ended_by TERM
    row "SIGINT under load" leaks ended_by INT
    row "SIGHUP under load" leaks ended_by HUP
    row "quit under load" leaks ended_by quit
    row "quit during scans" leaks ended_by quit scan=1,min-age=0,
    row "SIGTERM during scans" leaks ended_by TERM scan=1,min-age=0,
    row "quit while it is paused" leaks ended_by stop
    row "SIGKILL" "" killed
    row "-daemonize" leaks daemon report=report,
    row "-daemonize without report=" "has no stderr once -daemonize" daemon ''
    row "-sandbox on" leaks plain --smp 2 --run leak -- \
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    row "-plugin twice, one file" leaks twice
    row "-plugin twice, two files" "" twice copy
    row "another plugin, before it and after it" leaks beside_another
    row "-accel kvm" "KVM" bare -accel kvm
    row "-machine none" "translated no guest code" bare -machine none
    row "-S, never started" "translated no guest code" bare -S
}

# plain FOLDER ARGUMENT...: boots to the end.
plain() {
    start "$@"
    finish "$1"
}

# bare FOLDER ARGUMENT...: an empty machine, until it is told to end.
bare() {
    local folder=$1 status=0
    shift
    touch "$folder/console"
    timeout 4 "${qemu:-qemu-system-x86_64}" -nodefaults -display none -plugin "${plugin//,/,,}" "$@" \
        2>"$folder/stderr" >"$folder/stdout" || status=$?
    # Without KVM here it does not start, and there is nothing to see.
    if grep -q -e 'failed to initialize kvm' -e 'Could not access KVM' "$folder/stderr"; then
        echo "libleak: error: KVM is not here: not seen" >>"$folder/stderr"
    fi
}

# The same run twice: a recording, and its replay.
record_replay() {
    local folder=$1 addresses
    start "$folder" --smp 1 --run leak -- -icount "shift=7,rr=record,rrfile=$folder/record"
    finish "$folder"
    [ "$(compare "$folder")" = ok ] || return
    cp "$folder/reported" "$folder/recorded"
    mv "$folder/stderr" "$folder/stderr-record"
    rm "$folder"/*.{in,out}
    start "$folder" --smp 1 --run leak -- -icount "shift=7,rr=replay,rrfile=$folder/record"
    finish "$folder"
    compare "$folder" >/dev/null
    cmp -s "$folder/reported" "$folder/recorded" || wrong "$folder" "the replay reports something else"
}

# disk FOLDER: an image that snapshots are kept in, as QEMU's arguments.
disk() {
    [ -e "$1/disk.qcow2" ] || qemu-img create -q -f qcow2 "$1/disk.qcow2" 64M
    echo "-drive file=${1//,/,,}/disk.qcow2,if=none,format=qcow2"
}

# again FOLDER: makes room for the next guest there.
again() { rm -f "$1"/*.{in,out} "$1/stderr" "$1/console" "$1/monitor"; }

# orders FOLDER: a guest that takes orders runs a workload, leaks and ends.
orders() {
    order workload
    see "$1" "obey: done workload" || return
    order leak
    see "$1" "obey: done leak" || return
    order end
    finish "$1"
}

# runs FOLDER: waits until the guest runs: earlier orders are lost.
runs() {
    local n
    for n in 1 2 3 4 5 6 7 8 9 10; do
        monitor "$1" "info status"
        sleep 1
        ! grep -aq 'VM status: running' "$1/monitor" || return 0
    done
    wrong "$1" "the guest does not run"
}

# saved FOLDER: a guest without the plugin that waits for orders is saved, as "then" and in FOLDER/state.
saved() {
    local folder=$1 no_plugin=1
    # shellcheck disable=SC2046 # words
    start "$folder" --smp 2 --module grower --run insmod:grower,obey -- $(disk "$folder")
    see "$folder" "obey: ready" || return
    monitor "$folder" "savevm then"
    monitor "$folder" "migrate file:$folder/state"
    tell quit
    finish "$folder"
    again "$folder"
}

# Older objects are known from the kernel's allocator metadata alone.
from_snapshot() {
    echo 1000000 >"$1/unknown"
    saved "$1" || return
    # shellcheck disable=SC2046
    start "$1" --smp 2 --module grower --run insmod:grower,obey -- $(disk "$1") -loadvm then
    runs "$1"
    orders "$1"
    grep -q 'note: the guest .*came from elsewhere' "$1/stderr" || wrong "$1" "does not say that it came from elsewhere"
}

migrated_in() {
    echo 1000000 >"$1/unknown"
    saved "$1" || return
    # shellcheck disable=SC2046
    start "$1" --smp 2 --module grower --run insmod:grower,obey -- $(disk "$1") -incoming "file:$1/state"
    runs "$1"
    orders "$1"
}

other_boot() {
    echo 1000000 >"$1/unknown"
    saved "$1" || return
    # shellcheck disable=SC2046
    start "$1" --smp 2 --module grower --run insmod:grower,obey -- $(disk "$1")
    see "$1" "obey: ready" || return
    monitor "$1" "loadvm then"
    runs "$1"
    orders "$1"
    grep -q 'note: this is boot 2 of the guest' "$1/stderr" || wrong "$1" "does not say so"
}

suspended() {
    local n
    printf '#!/bin/sh\necho deep >/sys/power/mem_sleep && echo mem >/sys/power/state\n' >"$1/suspend"
    start "$1" --smp 2 --file "$1/suspend:guest/suspend" --run workload,suspend,leak
    see "$1" "PM: suspend entry (deep)" || return
    # It says so before it is done.
    for n in $(seq "$PATIENCE"); do
        monitor "$1" "info status"
        ! grep -aq 'VM status: paused (suspended)' "$1/monitor" || break
        sleep 1
    done
    monitor "$1" "system_wakeup"
    finish "$1"
}

migrated_out() {
    local options=${2:+,${2%,}}
    start "$1" --smp 2 --run obey
    see "$1" "obey: ready" || return
    order "workload 1 &"
    monitor "$1" "migrate file:$1/state"
    monitor "$1" "info migrate"
    grep -aq 'completed' "$1/monitor" || wrong "$1" "it did not migrate"
    monitor "$1" "cont"
    orders "$1"
}

plain_microvm() {
    # It has one serial line.
    local no_order=1
    start "$1" --smp 2 --machine microvm --append "libleak.off=reboot tsc_early_khz=2500000" --run workload,leak
    finish "$1"
}

hotplug_cpu() {
    # Later kernels without a hypervisor that they know take vCPUs that are missing in a package for
    # broken.
    local folder=$1 n kernel=bookworm
    cat >"$folder/cpus" <<'GUEST'
#!/bin/sh
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    [ ! -e $cpu/online ] || echo 1 >$cpu/online 2>/dev/null
done
echo "cpus: $(cat /sys/devices/system/cpu/online)"
GUEST
    start "$folder" --smp 1,sockets=4,maxcpus=4 --file "$folder/cpus:guest/cpus" --run obey
    see "$folder" "obey: ready" || return
    for n in 1 2 3; do
        monitor "$folder" "device_add qemu64-x86_64-cpu,id=cpu$n,socket-id=$n,core-id=0,thread-id=0"
    done
    until_guest "$folder" cpus "cpus: 0-3" || return
    order workload
    see "$folder" "obey: done workload"
    monitor "$folder" "device_del cpu2"
    until_guest "$folder" cpus "cpus: 0-1,3" || return
    orders "$folder"
}

# until_guest FOLDER STEP TEXT: has the guest do a step until it says that.
until_guest() {
    local n
    for n in 1 2 3 4 5 6 7 8 9 10; do
        order "$2"
        sleep 1
        ! grep -qF -- "$3" "$1/console" || return 0
    done
    wrong "$1" "the guest never said $3"
    return 1
}

# A guest with a step that says how much memory it has, in units of 128 MiB.
memory_step() {
    cat >"$1/memory" <<'GUEST'
#!/bin/sh
for block in /sys/devices/system/memory/memory*; do
    ! grep -q offline $block/state || echo online >$block/state 2>/dev/null
done
echo "memory: $(grep -l ^online /sys/devices/system/memory/memory*/state | wc -l)"
GUEST
}

hotplug_memory() {
    memory_step "$1"
    start "$1" --smp 2 --memory 256M,slots=4,maxmem=2G --file "$1/memory:guest/memory" --run obey
    see "$1" "obey: ready" || return
    monitor "$1" "object_add memory-backend-ram,id=mem1,size=512M"
    monitor "$1" "device_add pc-dimm,id=dimm1,memdev=mem1"
    until_guest "$1" memory "memory: 6" || return
    orders "$1"
}

unplug_memory() {
    local options=,scan=1,min-age=0 n
    memory_step "$1"
    start "$1" --smp 2 --memory 256M,slots=4,maxmem=2G --append memhp_default_state=online_movable \
        --file "$1/memory:guest/memory" --run obey
    see "$1" "obey: ready" || return
    for n in 1 2 3; do
        monitor "$1" "object_add memory-backend-ram,id=mem$n,size=512M"
        monitor "$1" "device_add pc-dimm,id=dimm$n,memdev=mem$n"
        until_guest "$1" memory "memory: 6" || return
        order workload
        see "$1" "obey: done workload"
        monitor "$1" "device_del dimm$n"
        : >"$1/console.seen"
        until_guest "$1" memory "memory: 2" || return
        sleep 1
        monitor "$1" "object_del mem$n"
        cp "$1/console" "$1/console-$n"
    done
    ! grep -aq 'Error:' "$1/monitor" || wrong "$1" "$(grep -a Error: "$1/monitor" | head -n 1)"
    orders "$1"
}

virtio_mem() {
    local KMODS=virtio_mem
    export KMODS
    memory_step "$1"
    printf '#!/bin/sh\nmodprobe virtio_mem\n' >"$1/driver"
    start "$1" --smp 2 --memory 256M,maxmem=2G --append memhp_default_state=online_movable --file "$1/memory:guest/memory" \
        --file "$1/driver:guest/driver" --run driver,obey -- -object memory-backend-ram,id=mem0,size=1G \
        -device virtio-mem-pci,id=vm0,memdev=mem0,requested-size=0
    see "$1" "obey: ready" || return
    monitor "$1" "qom-set vm0 requested-size 536870912"
    until_guest "$1" memory "memory: 6" || return
    order workload
    see "$1" "obey: done workload"
    monitor "$1" "qom-set vm0 requested-size 0"
    until_guest "$1" memory "memory: 2" || return
    orders "$1"
}

balloon() {
    local folder=$1 KMODS=virtio_balloon options=,scan=2,min-age=0
    shift
    export KMODS
    printf '#!/bin/sh\nmodprobe virtio_balloon\nsleep 3\n' >"$folder/driver"
    printf '#!/bin/sh\necho "free: $(($(grep MemFree /proc/meminfo | tr -dc 0-9) / 1024)) MiB"\n' >"$folder/free"
    start "$folder" --smp 2 --file "$folder/driver:guest/driver" --file "$folder/free:guest/free" --run driver,obey -- \
        -device virtio-balloon-pci,free-page-reporting=on "$@"
    see "$folder" "obey: ready" || return
    order free
    monitor "$folder" "balloon 220"
    sleep 5
    order free
    order workload
    see "$folder" "obey: done workload"
    monitor "$folder" "balloon 512"
    sleep 2
    orders "$folder"
    [ "$(grep -c 'free: ' "$folder/console")" = 2 ] || wrong "$folder" "no balloon"
}

# with_huge_pages PAGES COMMAND...: runs COMMAND while the host has that many huge pages of 2 MiB.
with_huge_pages() {
    local before pages=$1 file=/proc/sys/vm/nr_hugepages
    shift
    before=$(cat $file)
    # However this ends: the trap is set for the subshell of the row alone.
    trap "echo $before | as_root tee $file >/dev/null" EXIT
    trap 'exit 143' TERM INT HUP
    echo "$pages" | as_root tee $file >/dev/null
    "$@"
}

balloon_huge() {
    with_huge_pages 256 balloon "$1" -object memory-backend-memfd,id=ram,size=512M,hugetlb=on,hugetlbsize=2M \
        -machine memory-backend=ram
}

numa() {
    # The slab allocator takes a kmem_cache_node for each node before it works.
    echo 3 >"$1/unknown"
    start "$1" --smp 4,sockets=4 --memory 768 --run workload,leak -- \
        -object memory-backend-ram,id=m0,size=256M -object memory-backend-memfd,id=m1,size=256M \
        -object "memory-backend-file,id=m2,size=256M,mem-path=${1//,/,,}/ram,share=on" \
        -numa node,memdev=m0,cpus=0-1 -numa node,memdev=m1,cpus=2 -numa node,memdev=m2,cpus=3
    finish "$1"
}

uefi() {
    local folder=$1
    shift
    need_packages ovmf grub-efi-amd64-bin
    start "$folder" --smp 2 --machine q35 --run workload,leak "$@" -- -bios /usr/share/ovmf/OVMF.fd
    finish "$folder"
    grep -q 'efi: EFI v' "$folder/console" || wrong "$folder" "the kernel saw no UEFI"
}

nested() {
    local KMODS=kvm_amd
    export KMODS
    gcc -O2 -static -Wall -Werror -o "$1/vm" "$TOP/tests/programs/vm.c" || return
    printf '#!/bin/sh\nmodprobe kvm_amd %s\n/guest/vm\n' "${2:-}" >"$1/nested"
    start "$1" --smp 2 --cpu max,+svm --file "$1/vm:guest/vm" --file "$1/nested:guest/nested" --run nested,workload,leak
    finish "$1"
    grep -q 'vm: called' "$1/console" || wrong "$1" "no guest ran in the guest: $(grep 'vm: ' "$1/console" | head -n 1)"
}

stopped_at_start() {
    start "$1" --smp 2 --run leak -- -S
    sleep 2
    monitor "$1" "cont"
    finish "$1"
}

debugger() {
    need_packages gdb
    start "$1" --smp 2 --run obey -- -chardev "socket,path=${1//,/,,}/gdb,server=on,wait=off,id=gdb0" -gdb chardev:gdb0
    see "$1" "obey: ready" || return
    order "workload 1 &"
    gdb -batch -ex "set architecture i386:x86-64" -ex "target remote $1/gdb" -ex 'info registers rip' -ex 'stepi 200' \
        -ex detach >"$1/gdb.log" 2>&1
    grep -q '^rip' "$1/gdb.log" || wrong "$1" "the debugger saw nothing"
    orders "$1"
}

no_shutdown() {
    start "$1" --smp 2 --run leak -- -no-shutdown
    see "$1" "libleak-guest: off" || return
    sleep 3
    monitor "$1" "info status"
    tell quit
    finish "$1"
    grep -aq 'paused (shutdown)' "$1/monitor" || wrong "$1" "it was not off"
}

# crash_step FOLDER: a step that makes the guest panic.
crash_step() { printf '#!/bin/sh\nmodprobe pvpanic-mmio\necho c >/proc/sysrq-trigger\n' >"$1/crash"; }

panics() {
    local folder=$1 KMODS=pvpanic-mmio
    shift
    export KMODS
    crash_step "$folder"
    start "$folder" --smp 2 --file "$folder/crash:guest/crash" --run workload,leak,crash -- "$@"
    finish "$folder"
    grep -q 'Kernel panic' "$folder/console" || wrong "$folder" "no panic"
}

panics_and_pauses() {
    local KMODS=pvpanic-mmio
    export KMODS
    crash_step "$1"
    start "$1" --smp 2 --file "$1/crash:guest/crash" --run leak,crash -- -device pvpanic -action panic=pause
    see "$1" "Kernel panic" || return
    sleep 3
    monitor "$1" "info status"
    tell quit
    finish "$1"
    grep -aq 'paused (guest-panicked)' "$1/monitor" || wrong "$1" "it did not pause"
}

ended_by() {
    local options=${3:+,${3%,}}
    start "$1" --smp 2 --run leak,workload,workload,workload,workload,workload
    see "$1" "begin workload" || return
    # Until a few scans were made.
    sleep 4
    case $2 in
    quit) tell quit ;;
    stop)
        monitor "$1" "stop"
        tell quit
        ;;
    *) signal "$2" "$1" ;;
    esac
    finish "$1"
}

killed() {
    local options=,scan=1,min-age=0,report=$1/report,report=$1/lines.jsonl n
    start "$1" --smp 2 --run leak,workload,workload,workload
    see "$1" "begin workload" || return
    see "$1" "libleak: " report || return
    sleep 2
    signal KILL "$1"
    finish "$1" 137
    [ "$(tail -c 1 "$1/report" | od -An -tx1 | tr -d ' ')" = 0a ] || wrong "$1" "the report ends in the middle of a line"
    n=$(grep -c '^libleak: [0-9]* unreferenced.*Linux' "$1/report")
    [ "$n" -gt 1 ] || wrong "$1" "$n reports"
    python3 -c 'import json, sys; [json.loads(line) for line in open(sys.argv[1])]' "$1/lines.jsonl" ||
        wrong "$1" "no lines of JSON"
}

daemon() {
    # The daemon has no parent process here.
    local folder=$1 status=0 began=$SECONDS pid job=$$
    printf '#!/bin/sh\ninsmod /modules/leaky.ko\n' >"$folder/leak"
    cd "$folder" || return
    "$TOP/scripts/boot" "$kernel" ${qemu:+--qemu "$qemu"} --smp 2 --module leaky --file "$folder/leak:guest/leak" \
        --run workload,leak --console "$folder/console" -- -daemonize -pidfile "$folder/pid" \
        -plugin "${plugin//,/,,},each=on,${2}control=leak.sock" >"$folder/stdout" 2>"$folder/stderr" || status=$?
    touch "$folder/console"
    [ -n "$2" ] || return 0
    [ "$status" = 0 ] || wrong "$folder" "status $status"
    pid=$(cat "$folder/pid")
    see "$folder" "begin workload"
    "$CARGO_TARGET_DIR/release/leak" status --control "$folder/leak.sock" >"$folder/status" 2>&1 ||
        wrong "$folder" "leak status: $(head -n 1 "$folder/status")"
    while kill -0 "$pid" 2>/dev/null && [ $((SECONDS - began)) -lt "$PATIENCE" ]; do sleep 0.2; done
    kill -TERM "$pid" 2>/dev/null && wrong "$folder" "it did not end"
    true
}

twice() {
    local folder=$1 other=$plugin
    if [ "${2:-}" = copy ]; then
        cp "$plugin" "$folder/other.so"
        other=$folder/other.so
    fi
    start "$folder" --smp 2 --run leak -- -plugin "${other//,/,,}"
    if [ "${2:-}" = copy ]; then
        finish "$folder" 1
        # The first one says that nothing ran.
        grep -q '^libleak: error: another libleak is loaded' "$folder/stderr" || wrong "$folder" "is not refused"
    else
        finish "$folder"
    fi
}

# A plugin with callbacks on the same instructions: QEMU runs them in the order in which plugins are
# given.
beside_another() {
    local folder=$1 no_plugin=1 ours="${plugin//,/,,},each=on" busy="${busy//,/,,}"
    start "$folder" --smp 2 --run workload,leak -- -plugin "$busy" -plugin "$ours"
    finish "$folder"
    grep -q '^busy-plugin: [0-9]* blocks ran, [0-9]\{7,\} accesses' "$folder/stderr" || wrong "$folder" "the other plugin saw nothing"
    [ "$(compare "$folder")" = ok ] || return
    again "$folder"
    start "$folder" --smp 2 --run workload,leak -- -plugin "$ours" -plugin "$busy"
    finish "$folder"
}
