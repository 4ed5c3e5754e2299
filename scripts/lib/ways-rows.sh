# The ways that scripts/ways goes, and the table of them.
#
# Source it after ways.sh; do not run it.

all_rows() {
    row "-accel tcg,thread=single, 2 vCPUs" leaks plain --smp 2 --accel tcg,thread=single --run workload,leak
    row "-accel tcg,thread=single, 4 vCPUs" leaks plain --smp 4 --accel tcg,thread=single --run workload,leak
    row "-icount shift=auto, 2 vCPUs" leaks plain --smp 2 --run workload,leak -- -icount shift=auto
    row "-icount shift=auto,sleep=off, 4 vCPUs" leaks plain --smp 4 --run workload,leak -- -icount shift=auto,sleep=off
    row "-accel tcg,one-insn-per-tb=on" leaks plain --smp 2 --accel tcg,one-insn-per-tb=on --timeout 900 --run leak
    row "-accel tcg,tb-size=2" leaks plain --smp 2 --accel tcg,tb-size=2 --run workload,leak
    row "record, then replay (-icount rr=)" leaks record_replay
    row "savevm, loadvm" "" rewound
    row "-loadvm on the command line" leaks from_snapshot --smp 2
    row "loadvm of another boot" leaks other_boot
    row "migration out, to a file" leaks migrated_out
    row "migration in (-incoming)" leaks migrated_in
    row "migration while scans are made" leaks migrated_out scan=1,min-age=0,
    row "-snapshot" leaks plain --smp 2 --run leak -- -snapshot
    row "system_reset" leaks reset_by_monitor
    row "vCPU hot plug and unplug" leaks hotplug_cpu
    row "memory hot plug (pc-dimm)" leaks hotplug_memory
    row "memory hot unplug" leaks unplug_memory
    row "virtio-mem" leaks virtio_mem
    row "virtio-balloon, with free page reporting" leaks balloon -m
    row "NUMA: anonymous, memfd and file memory" leaks numa
    row "-machine memory-backend=, shared and preallocated" leaks plain --smp 2 --machine pc,memory-backend=ram --run workload,leak -- \
        -object memory-backend-memfd,id=ram,size=512M,share=on,prealloc=on
    row "-mem-path, -mem-prealloc" leaks plain --smp 2 --run workload,leak -- -mem-path /dev/shm -mem-prealloc
    row "huge pages" leaks huge_pages
    row "-machine q35" leaks plain --smp 2 --machine q35 --run workload,leak
    row "-machine microvm" leaks plain --smp 2 --machine microvm --append "libleak.off=reboot tsc_early_khz=2500000" \
        --run workload,leak
    row "8 vCPUs, 6 GiB" leaks plain --smp 8 --memory 6144 --run workload,leak
    row "UEFI (OVMF) and GRUB from a disk" leaks uefi
    row "BIOS and GRUB from a disk" leaks plain --smp 2 --loader grub --run workload,leak
    row "-cpu max" leaks plain --smp 2 --cpu max --run workload,leak
    row "-cpu EPYC" leaks plain --smp 2 --cpu EPYC --run workload,leak
    row "-cpu Nehalem" leaks plain --smp 2 --cpu Nehalem --run workload,leak
    row "-cpu kvm64" leaks plain --smp 2 --cpu kvm64 --run workload,leak
    row "a guest's guest under KVM (-cpu max,+svm)" leaks nested --cpu max,+svm
    row "a guest's guest without nested paging" leaks nested --cpu max,+svm --append kvm_amd.npt=0
    row "-S, then cont" leaks stopped_at_start
    row "-s, with a debugger" leaks debugger
    row "-no-shutdown, then quit" leaks no_shutdown
    row "-action reboot=shutdown" leaks plain --smp 2 --append libleak.off=reboot --run leak -- -action reboot=shutdown
    row "guest panic" leaks panics 0
    row "guest panic, -device pvpanic" leaks panics 0 -device pvpanic
    row "guest panic, -action panic=pause, then quit" leaks panics_and_pauses
    row "SIGTERM under load" leaks ended_by TERM
    row "SIGINT under load" leaks ended_by INT
    row "SIGHUP under load" leaks ended_by HUP
    row "monitor: quit under load" leaks ended_by quit
    row "SIGTERM during scans" leaks ended_by TERM scan=1,min-age=0,
    row "quit while it is paused" leaks ended_by stop
    row "SIGKILL" "" killed
    row "-daemonize" leaks daemon report
    row "-daemonize without report=" "has no stderr once -daemonize" daemon ''
    row "-sandbox on" leaks plain --smp 2 --run leak -- \
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    row "-plugin twice, the same file" leaks twice same
    row "-plugin twice, two files" "twice" twice copy
    row "-accel kvm" "KVM" bare -accel kvm
    row "-accel qtest" "translated no guest code" bare -accel qtest
    row "-machine none" "translated no guest code" bare -machine none
    row "-S, never started" "translated no guest code" bare -S
}

# plain FOLDER ARGUMENT...: boots to the end.
plain() {
    start "$@"
    finish "$1"
}

# bare FOLDER ARGUMENT...: a machine without anything, until it is told to end.
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

# The same run twice: once for the record, and once from it.
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

# saved FOLDER BOOT-OPTION...: a guest without the plugin that waits for orders is saved as "then".
saved() {
    local folder=$1 no_plugin=1
    shift
    # shellcheck disable=SC2046 # words
    start "$folder" "$@" --run insmod:grower,obey --module grower -- $(disk "$folder")
    see "$folder" "obey: ready" || return
    monitor "$folder" "savevm then"
    monitor "$folder" "quit"
    finish "$folder"
    rm "$folder"/*.{in,out} "$folder/stderr" "$folder/console"
}

from_snapshot() {
    local folder=$1
    saved "$@" || return
    # shellcheck disable=SC2046
    start "$@" --run insmod:grower,obey --module grower -- $(disk "$folder") -loadvm then
    sleep 1
    order workload
    order leak
    see "$folder" "obey: done leak"
    order end
    finish "$folder"
    # All that was allocated before is known by the kernel's books alone.
    UNKNOWN=1000000
}
