# How scripts/ways boots a guest, talks to it and to its QEMU, and compares the report with what was
# lost.
#
# Source it after common.sh, kernels.sh, roots.sh, guest.sh and qemu.sh; do not run it. A way is a
# function that gets a folder, runs QEMU there, and leaves `console` and `stderr` in it. Other
# failures go to FOLDER/trouble.

# The longest wait for any event, in seconds.
PATIENCE=200

# row NAME EXPECTED FUNCTION ARGUMENT...: tries one way and prints its row. EXPECTED is "leaks":
# exactly those of leaky. Or it is a part of the one line of libleak that says why there is no
# report. It is tried again at most twice if a leak is missing.
row() {
    local name=$1 expected=$2 folder try verdict
    shift 2
    is_wanted "$name" || return 0
    rows=$((rows + 1))
    # shellcheck disable=SC2001 # more than one character
    folder=$out/$(sed 's/[^a-zA-Z0-9.]\+/-/g' <<<"$name")
    for try in 1 2 3; do
        rm -rf "$folder"
        mkdir -p "$folder"
        # A subshell that does not end at the first failure, and whose background jobs are its own.
        (set +eo pipefail; "$1" "$folder" "${@:2}") >"$folder/log" 2>&1 </dev/null || true
        trouble=$(head -n 1 "$folder/trouble" 2>/dev/null || true)
        case "$expected" in
        leaks) seen=$(set +eo pipefail; compare "$folder") ;;
        '') seen=ok ;;
        *) seen=$(set +eo pipefail; one_line "$folder" "$expected") ;;
        esac
        [ "$seen" = "misses leaks" ] || break
    done
    verdict=ok
    case "$seen" in
    ok*) ;;
    *) verdict="FAILED: $seen" ;;
    esac
    [ -z "$trouble" ] || verdict="FAILED: $trouble"
    [ "$verdict" = ok ] || failed=$((failed + 1))
    [ "$try" = 1 ] || verdict="$verdict (boot $try)"
    printf '| %s | %s | %s |\n' "$name" "${expected/#leaks/its leaks}" "$verdict"
}

# is_wanted NAME: whether the row was asked for.
is_wanted() {
    local word
    [ ${#words[@]} -gt 0 ] || return 0
    for word in "${words[@]}"; do
        case "$1" in *"$word"*) return 0 ;; esac
    done
    return 1
}

# counter NAME SUMMARY: a number of the summary line.
counter() { sed -n "s/.*[;,] \([0-9]*\) $1[,;].*/\1/p" <<<"$2"; }

# compare FOLDER: "ok" if all reports together have exactly what the guest's module lost, and the
# last one has no doubts. Otherwise what is wrong.
compare() {
    local folder=$1 summary name n doubts=0 missing extra
    tr -d '\r' <"$folder/console" | sed -n 's/.*leaky: leak [^ ]* 0x\([0-9a-f]*\) .*/\1/p' | sort -u >"$folder/planted"
    cat "$folder/stderr" "$folder/report" 2>/dev/null |
        sed -n 's/^unreferenced object \((percpu) \)\?0x\([0-9a-f]*\) .*/\2/p' | sort -u >"$folder/reported"
    summary=$(cat "$folder/stderr" "$folder/report" 2>/dev/null | grep '^libleak: [0-9]* unreferenced' | tail -n 1)
    if [ -z "$summary" ]; then
        echo "no report: $(grep -m 1 '^libleak: ' "$folder/stderr" | cut -c 1-160)"
        return
    fi
    for name in freed 'unmatched returns' 'unwatched sites' 'unknown frees' 'missed frees' stale; do
        n=$(counter "$name" "$summary")
        doubts=$((doubts + ${n:-1}))
    done
    n=$(counter unknown "$summary")
    missing=$(comm -23 "$folder/planted" "$folder/reported" | wc -l)
    extra=$(comm -13 "$folder/planted" "$folder/reported" | wc -l)
    if [ "$extra" != 0 ]; then
        echo "reports $extra objects that are no leaks"
    elif [ "$(wc -l <"$folder/planted")" != 8 ]; then
        echo "the module planted $(wc -l <"$folder/planted")"
    elif [ "$doubts" != 0 ] || [ "$n" -gt "$(cat "$folder/unknown" 2>/dev/null || echo 2)" ]; then
        echo "doubtful: $doubts doubts, $n unknown"
    elif [ -n "$(complaints "$folder")" ]; then
        echo "says $(complaints "$folder" | head -n 1 | cut -c 1-160)"
    elif grep -q -e Oops -e 'BUG:' -e 'WARNING: CPU' "$folder/console"; then
        echo "the guest was not well"
    elif [ "$missing" != 0 ]; then
        echo "misses leaks"
    else
        echo ok
    fi
}

# complaints FOLDER: libleak's lines other than reports and notes, except for lines with the text in
# FOLDER/said.
complaints() {
    local said
    said=$(cat "$1/said" 2>/dev/null || echo "no such text")
    cat "$1/stderr" "$1/report" 2>/dev/null | grep '^libleak: ' |
        grep -v -e '^libleak: note: ' -e '^libleak: [0-9]* unreferenced' | grep -vF -- "$said"
}

# one_line FOLDER TEXT: "ok" if libleak printed one line, an error with TEXT in it.
one_line() {
    if [ "$(grep -c '^libleak: ' "$1/stderr")" != 1 ]; then
        echo "says $(grep -c '^libleak: ' "$1/stderr") lines: $(grep '^libleak: ' "$1/stderr" | head -n 2 | cut -c 1-160 | tr '\n' ' ')"
    elif grep '^libleak: error: ' "$1/stderr" | grep -qF -- "$2"; then
        echo ok
    else
        echo "says $(grep '^libleak: ' "$1/stderr" | cut -c 1-160)"
    fi
}

# wrong FOLDER WORD...: notes a failure.
wrong() {
    local folder=$1
    shift
    echo "$*" >>"$folder/trouble"
}

# start FOLDER BOOT-OPTION... -- QEMU-ARGUMENT...: starts a guest in the background, whose job
# number is in $job. It has the module. QEMU has a monitor for `tell` and a second serial line for
# `order`. `options` are the plugin's, after a comma.
start() {
    local folder=$1 args=() more=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        args+=("$1")
        shift
    done
    [ $# = 0 ] || shift
    mkfifo "$folder"/{hmp,order}.{in,out}
    # A writer to a pipe without a reader would wait.
    exec 7<>"$folder/hmp.in" 8<>"$folder/order.in"
    cat "$folder/hmp.out" >"$folder/monitor" &
    cat "$folder/order.out" >/dev/null &
    printf '#!/bin/sh\ninsmod /modules/leaky.ko\n' >"$folder/leak"
    [ -n "${no_plugin:-}" ] || more+=(-plugin "${plugin//,/,,},each=on${more_options:-}${options:-}")
    [ -n "${no_order:-}" ] || more+=(-serial "pipe:${folder//,/,,}/order")
    scripts/boot "${kernel:-bookworm-backports}" --timeout "${limit:-300}" --module leaky --file "$folder/leak:guest/leak" \
        --console "$folder/console" ${qemu:+--qemu "$qemu"} "${args[@]}" -- \
        -chardev "pipe,id=hmp,path=${folder//,/,,}/hmp" -mon hmp "${more[@]}" "$@" >"$folder/stdout" 2>>"$folder/stderr" &
    job=$!
    touch "$folder/console"
}

# finish FOLDER [STATUS]: waits for its end, which must have that status (0).
finish() {
    local status=0
    wait "$job" || status=$?
    exec 7>&- 8>&-
    [ "$status" = "${2:-0}" ] || wrong "$1" "status $status"
}

# see FOLDER TEXT [FILE]: waits until the console (or FILE) has the text.
see() {
    local began=$SECONDS
    until grep -qF -- "$2" "$1/${3:-console}" 2>/dev/null; do
        if [ $((SECONDS - began)) -gt "$PATIENCE" ]; then
            wrong "$1" "no \"$2\" in ${3:-console}"
            return 1
        fi
        if ! kill -0 "$job" 2>/dev/null && ! grep -qF -- "$2" "$1/${3:-console}"; then
            wrong "$1" "QEMU ended before \"$2\" was in ${3:-console}"
            return 1
        fi
        sleep 0.1
    done
}

# tell COMMAND: to QEMU's monitor. order COMMAND: to the guest's step `obey`.
tell() { echo "$*" >&7; }
order() { echo "$*" >&8; }

# monitor FOLDER COMMAND...: sends the commands, and waits for the next prompt after each.
monitor() {
    local folder=$1 before
    shift
    before=$(grep -ao '(qemu)' "$folder/monitor" | wc -l)
    tell "$*"
    local began=$SECONDS
    until [ "$(grep -ao '(qemu)' "$folder/monitor" | wc -l)" -gt "$before" ]; do
        if [ $((SECONDS - began)) -gt "$PATIENCE" ]; then
            wrong "$folder" "the monitor did not answer to $*"
            return 1
        fi
        sleep 0.1
    done
}

# signal NAME FOLDER: sends it to QEMU itself, which a dynamic linker may have started.
signal() {
    local qemu
    qemu=$(pgrep -f -P "$(pgrep -P "$job" timeout || echo "$job")" qemu-system)
    kill -"$1" "$qemu" || wrong "$2" "QEMU is not there to get SIG$1"
}
