# The rows of scripts/matrix --series: every series of kernels that Debian's mirror has.
#
# Source it after common.sh and kernels.sh, in scripts/matrix, whose functions it uses; do not run it.
#
# Each row is one boot: the workload, and then the module zoo. The mirror keeps
# older series without their headers. No module can be built for these, and the workload alone must have no report.
# The columns:
#
#   release   what uname -r prints
#   found     leaks reported, of those that the module planted
#   hidden    the others: no boot is repeated for them. Who refers to each is in the row's folder, in the file "why"
#   held      reported, though the module holds them
#   extra     reported, and not the module's
#   doubts    sum of the counters that speak against a report
#   unknown   objects in slabs whose allocation was not seen; the slab allocator makes one or two itself
#
# A kernel that was fetched for its row alone is thrown away after it: together they take some 20 GB.

# Suites, each with the series that are taken of it; none means its newest kernel.
SERIES_SUITES=(bullseye bookworm bookworm-backports trixie trixie-backports@)
SERIES_FLAVOURS=('' :rt-amd64 -generic)
# Ways to boot one of them. Call depth tracking is for Intel's CPUs that have retpolines.
SERIES_WAYS=(
    "bookworm-backports --cpu Skylake-Client --append spectre_v2=retpoline --append retbleed=stuff"
    "bookworm-backports --memory 1024 --append crashkernel=128M"
)
# Leaks of one boot that a dead word may hide; more are a failure.
SERIES_HIDDEN=1

# series_rows: the rows, one a line.
series_rows() {
    local suite flavour series
    for flavour in "${SERIES_FLAVOURS[@]}"; do
        for suite in "${SERIES_SUITES[@]}"; do
            case "$suite" in
            *@)
                # The suite of the release is a part of the lists, and has rows of its own.
                for series in $(suite_series "${suite%@}"); do
                    [ "$series" = "$(suite_base "${suite%-backports@}")" ] || echo "$suite$series$flavour"
                done
                ;;
            *) echo "$suite$flavour" ;;
            esac
        done
        [ -n "$flavour" ] || printf '%s\n' "${SERIES_WAYS[@]}"
    done
}

# suite_base SUITE: the series that the release came with.
suite_base() { suite_series "$1" | head -n 1; }

# has_headers KERNELDIR: can modules be built for it?
has_headers() { [ -d "$1/root/usr/src/linux-headers-$(cat "$1/release")" ]; }

# why_hidden FOLDER SNAPSHOT MODULE: writes to FOLDER/why who refers to each leak that MODULE planted and that was not
# reported.
why_hidden() {
    local address
    [ -x "$CARGO_TARGET_DIR/release/leak" ] || cargo build --release --quiet --package cli
    "$CARGO_TARGET_DIR/release/leak" check "$2" --why "$3" >"$1/check" 2>&1 || true
    for address in $(comm -23 "$1/planted" "$1/reported"); do
        # The object, and the lines after it that are indented further.
        awk -v "object=libleak: why: 0x$address " '
            index($0, "libleak: why: 0x") == 1 { on = index($0, object) == 1; found = found || on }
            on
            END { if (!found) print object "is not in the check" }' "$1/check"
    done >"$1/why"
}

# series_row ROW: boots it and prints it.
series_row() {
    local row=$1 folder dir try module='' snapshot='' is_new='' hidden release verdict arguments
    read -ra arguments <<<"$row"
    dir=$CACHE/kernels/${arguments[0]/:/-}
    [ -d "$dir" ] || is_new=1
    # shellcheck disable=SC2001 # more than one character
    folder=$out/$(sed 's/[^a-zA-Z0-9.]\+/-/g' <<<"$row")
    mkdir -p "$folder"
    found=0 planted=0 held=- extra=- doubts=- unknown=- hidden=- release=-
    # In a shell of its own, which ends where there is no such kernel.
    if (guest_kernel "${arguments[0]}") >/dev/null 2>"$folder/fetch"; then
        release=$(cat "$dir/release")
        has_headers "$dir" || module=none
        snapshot=$folder/snapshot
        for try in 1 2 3; do
            boots=$((boots + 1))
            boot_row "$folder" "${arguments[@]}"
            # The host was busy when the kernel looked at its clocks.
            grep -q "timer doesn't work" "$folder/console" || break
        done
        hidden=$((planted - found))
        [ "$hidden" = 0 ] || [ ! -e "$snapshot" ] || why_hidden "$folder" "$snapshot" zoo
        [ "$trouble" != "misses leaks" ] || [ "$hidden" -gt "$SERIES_HIDDEN" ] || trouble=''
        # Of what is wrong everything is kept.
        [ -n "$trouble" ] || rm -f "$snapshot"
    else
        trouble="not fetched: $(tail -n 1 "$folder/fetch" | cut -c 1-80)"
    fi
    verdict=ok
    [ "$module" != none ] || verdict="ok, no headers"
    [ -z "$trouble" ] || {
        verdict="FAILED: $trouble"
        failed=$((failed + 1))
    }
    printf '%-44s %-28s %7s %6s %4s %5s %6s %7s  %s\n' \
        "$row" "$release" "$found/$planted" "$hidden" "$held" "$extra" "$doubts" "$unknown" "$verdict"
    [ -z "$is_new" ] || rm -rf "$dir"
}

# series_table: all rows, and the guests that hibernate (tests/tests/hibernation.rs).
series_table() {
    local row verdict
    printf '%-44s %-28s %7s %6s %4s %5s %6s %7s  %s\n' row release found hidden held extra doubts unknown verdict
    while read -r row <&3; do
        wanted "$row" || continue
        rows=$((rows + 1))
        series_row "$row"
    done 3< <(series_rows)
    wanted hibernation || return 0
    verdict=ok
    # With the plugin that is built here.
    cargo build --release --quiet --package libleak
    cargo test --profile tests --quiet -p tests --test hibernation -- --test-threads=1 >"$out/hibernation" 2>&1 || {
        failed=$((failed + 1))
        verdict="FAILED: see $out/hibernation"
    }
    printf '%-116s  %s\n' "bookworm-backports: hibernation, three guests" "$verdict"
}
