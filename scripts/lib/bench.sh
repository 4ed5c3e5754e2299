# How scripts/bench reads the figures of a boot, and describes the machine.
#
# Source it after common.sh, kernels.sh and qemu.sh; do not run it.

# has_option PLUGIN NAME: whether this libleak.so has the option. It prints its options itself, and
# QEMU then ends.
has_option() {
    local help
    help=$(qemu-system-x86_64 -machine none -display none -accel tcg -plugin "$1,help=on" 2>&1 </dev/null || true)
    grep -q "^ *\(libleak: \)\? *$2=" <<<"$help"
}

# timed_qemu FILE: makes a command that runs QEMU, with its pid in $BENCH_FILES.pid. It leaves in
# $BENCH_FILES.time the processor seconds (user, system) and the most KiB of memory (ru_maxrss).
timed_qemu() {
    cat >"$1" <<'QEMU'
#!/bin/sh
exec /usr/bin/time --quiet --format '%U %S %M' --output "$BENCH_FILES.time" \
    sh -c 'echo $$ >"$BENCH_FILES.pid"; exec qemu-system-x86_64 "$@"' sh "$@"
QEMU
    chmod +x "$1"
}

# watch_console PIDFILE: passes a guest's console on. After each line of a load it adds the
# processor time of QEMU since the line before, all threads together, in ns. It starts no process
# for that, which would take longer.
watch_console() {
    local line name pid sum last=0 ns file
    while IFS= read -r line; do
        line=${line%$'\r'}
        printf '%s\n' "$line"
        case "$line" in
        'bench: '*)
            read -r pid <"$1"
            sum=0
            for file in "/proc/$pid/task"/*/schedstat; do
                # A thread may have ended since.
                read -r ns _ 2>/dev/null <"$file" || ns=0
                sum=$((sum + ns))
            done
            name=${line#bench: }
            printf 'bench-cpu: %s %s\n' "${name% *}" $((sum - last))
            last=$sum
            ;;
        esac
    done
}

# values VARIANT BOOT FILES: the figures of a boot, as "VARIANT BOOT NAME VALUE" lines. Times are in
# ms. Names that are no load of the guest begin with a dot, and those of processor time with cpu and
# a dot.
values() {
    local files=$3 summary
    {
        awk '
            $1 == "bench:" && $2 != "done" { print $2, $3 / 1000 }
            $1 == "bench-cpu:" && $2 != "done" { print "cpu." $2, $3 / 1e6 }
            $1 == "bench-figure:" && $2 == "kmemleak-scan" { scan = $3 / 1000 }
            $1 == "bench-figure:" && $2 == "kmemleak-objects" && $3 > 0 { objects = $3 }
            # The second scan: the first one finds nothing in the caches.
            END { if (scan) { print ".scan", scan; if (objects) print ".objects", objects } }' "$files.console"
        awk 'NF == 3 { print ".cpu", ($1 + $2) * 1000; print ".rss", $3 }' "$files.time"
        summary=$(grep '^libleak: [0-9]* unreferenced' "$files.stderr" | tail -n 1 || true)
        sed -n 's/.*[^0-9]\([0-9]\+\) live objects.*/.objects \1/p' <<<"$summary"
        sed -n 's/.*heap in \([0-9.]\+\) ms.*/.scan \1/p' <<<"$summary"
        sed -n 's/.*pause \([0-9.]\+\) ms.*/.pause \1/p' <<<"$summary"
    } | sed "s/^/$1 $2 /"
}

# machine KERNEL SMP RUNS LOAD: the heading of the table. LOAD is the load average at the start.
machine() {
    local kernel=$1 smp=$2 runs=$3 load=$4
    cat <<TEXT
$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores; QEMU $(qemu_release); Linux $(cat "$CACHE/kernels/$kernel/release"), $smp vCPUs, 512 MiB; $runs boots each, in turns. The machine's load average was $load at the start and $(cut -d ' ' -f 1 /proc/loadavg) at the end, of which a guest makes 1 to $smp.

TEXT
}

# held FOLDER VARIANT: the cost of a live object, from boots of none and of VARIANT with (-held) and
# without (-1) many more objects. What does not grow with them, such as the kernel's symbols,
# cancels out.
held() {
    local file=() name
    for name in "$2-held" none-held "$2-1" none-1; do
        values x 0 "$1/$name" >"$1/$name.values"
        file+=("$1/$name.values")
    done
    awk -v name="$2" '
        $3 == ".rss" { rss[FILENAME] = $4 }
        $3 == ".objects" { objects[FILENAME] = $4 }
        END {
            more = objects[ARGV[1]] - objects[ARGV[3]]
            if (more > 0)
                printf "- %s: %.0f bytes of QEMU for each live object, check included: %d more objects make %.1f MiB more, of which the guest itself %.1f\n",
                    name, ((rss[ARGV[1]] - rss[ARGV[2]]) - (rss[ARGV[3]] - rss[ARGV[4]])) * 1024 / more, more,
                    (rss[ARGV[1]] - rss[ARGV[3]]) / 1024, (rss[ARGV[2]] - rss[ARGV[4]]) / 1024
        }' "${file[@]}"
}

# said FOLDER: libleak's own figures from the boots with LIBLEAK_LOG=info, and the instructions of a
# check.
said() {
    local log count name
    for log in "$1"/*-log.stderr; do
        [ -e "$log" ] || continue
        name=$(basename "$log" -log.stderr)
        sed -n "s/.*\(ready .* after the first kernel block\).*/- $name: \1/p; s/.*\(unwinding took .*\)/- $name: \1/p" "$log"
    done
    [ -e "$1/check.stderr" ] || return 0
    count=$(sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$1/check.stderr")
    echo "- \`leak check\` of a snapshot: ${count:-no count, see target/bench/check.stderr} instructions; it says"
    sed -n 's/^libleak: [0-9]* unreferenced/  > &/p' "$1/check"
}
