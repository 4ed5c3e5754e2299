# The recipes that scripts/recipes runs, and how it judges them.
#
# Source it after common.sh, kernels.sh, roots.sh, guest.sh, qemu.sh, selfbuilt.sh and vng.sh; do
# not run it. A recipe is a function that gets a folder, runs `$leak run` there, and returns its
# status. Other failures go to FOLDER/trouble.

# row NAME STATUS FUNCTION ARGUMENT...: runs a recipe and prints its row.
row() {
    local name=$1 wanted=$2 folder began=$SECONDS status=0 verdict=ok trouble
    shift 2
    is_wanted "$name" || return 0
    rows=$((rows + 1))
    # shellcheck disable=SC2001 # more than one character
    folder=$out/$(sed 's/[^a-zA-Z0-9.]\+/-/g' <<<"$name")
    rm -rf "$folder"
    mkdir -p "$folder"
    # A subshell that does not end at the first failure: the last command's status is the recipe's.
    (set +e; "$1" "$folder" "${@:2}") >"$folder/stdout" 2>"$folder/stderr" </dev/null || status=$?
    trouble=$(cat "$folder/trouble" 2>/dev/null || true)
    if [ "$status" != "$wanted" ] || [ -n "$trouble" ]; then
        failed=$((failed + 1))
        verdict="FAILED${trouble:+: $trouble}"
    fi
    printf '%-44s %6s %6s %8s  %s\n' "$name" "$status" "$wanted" $((SECONDS - began)) "$verdict"
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

# expect FOLDER FILE WORDS...: each of them is in that file.
expect() {
    local folder=$1 file=$2 word
    shift 2
    for word in "$@"; do
        grep -qF -- "$word" "$file" 2>/dev/null || echo "no \"$word\" in $(basename "$file")" >>"$folder/trouble"
    done
}

# The module leaky loses 8 objects. A stale word that equals an address may hide one or two.
LEAKY='[5-8] leaks, [0-9]* bytes: '

# expect_leaky FOLDER WORDS...: the report has the module's leaks, and the words.
expect_leaky() {
    local folder=$1
    shift
    grep -q "<failure message=\"$LEAKY.*\[leaky\]" "$folder/leaks.xml" || echo "no leaks of leaky in leaks.xml" >>"$folder/trouble"
    [ $# = 0 ] || expect "$folder" "$folder/leaks.xml" "$@"
}

# booted FOLDER OPTION... -- SCRIPTS-BOOT-ARGUMENT...: a guest of this project's own, whose script is the harness.
booted() {
    local folder=$1 options=()
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    "$leak" run --report "$folder/leaks.xml" "${options[@]}" -- scripts/boot bookworm-backports --smp 2 "$@"
}

qemu_leaky() {
    local status
    booted "$1" -- --module leaky --run insmod:leaky,workload
    status=$?
    expect_leaky "$1" 'leak_list+0x'
    return $status
}

qemu_clean() { booted "$1" -- --run workload; }

# QEMU itself fails where there is no KVM.
qemu_kvm() {
    local status
    "$leak" run --keep-kvm --report "$1/leaks.xml" -- \
        sh -c 'timeout 10 qemu-system-x86_64 -nodefaults -display none -accel kvm -cpu host || true'
    status=$?
    expect "$1" "$1/leaks.xml" '<error message=' KVM
    return $status
}

disk_leaky() {
    local status
    booted "$1" -- --loader grub --module leaky --run insmod:leaky,workload
    status=$?
    expect_leaky "$1"
    return $status
}

# under_vng FOLDER KERNEL LEAK-OPTION... -- VNG-ARGUMENT...: runs vng. Its output must not be a
# file, which QEMU would empty.
under_vng() {
    local folder=$1 kernel image path options=() status
    kernel=$(guest_kernel "$2") || return
    shift 2
    image=$(vng_image "$kernel") && path=$(virtme_ng) || return
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    PATH=$path:$PATH "$leak" run --report "$folder/leaks.xml" --report "$folder/leaks.jsonl" "${options[@]}" -- \
        vng --disable-kvm -r "$image" --user root --cpus 2 --memory 1G "$@" 2>&1 | cat
    status=${PIPESTATUS[0]}
    return "$status"
}

# vng_module FOLDER KERNEL NAME: builds a test module for it there.
vng_module() {
    local kernel source=$TOP/tests/modules/$3
    kernel=$(guest_kernel "$2") || return
    [ -d "$source" ] || source=$source.c
    build_module "$kernel" "$source" "$1"
}

vng_leaky() {
    local status
    vng_module "$1" "$2" zoo || return
    cat >"$1/test" <<TEST
echo "leak:test before" >/proc/self/comm
ls / >/dev/null
echo "leak:test zoo" >/proc/self/comm
insmod $1/zoo.ko && sleep 3
echo "leak:test" >/proc/self/comm
echo the test is over
TEST
    under_vng "$1" "$2" -- --exec "sh $1/test"
    status=$?
    expect "$1" "$1/stdout" 'the test is over'
    expect "$1" "$1/leaks.xml" '<testcase name="before" classname="libleak"/>' '<testcase name="zoo" classname="libleak">' \
        '[zoo]'
    return $status
}

vng_clean() {
    local status
    under_vng "$1" "$2" -- --exec 'uname -r; ls /usr | wc -l'
    status=$?
    expect "$1" "$1/leaks.xml" 'failures="0" errors="0"'
    return $status
}

# in_vng_tree FOLDER VNG-ARGUMENT...: what somebody types in a tree that vng --build has built. No
# option of libleak is said, but where the reports go.
in_vng_tree() {
    local folder=$1 tree path
    shift
    tree=$(vng_tree) && path=$(virtme_ng) || return
    (
        cd "$tree" || exit
        PATH=$path:$PATH "$leak" run --report "$folder/leaks.xml" --report "$folder/leaks.txt" -- vng -r . "$@" 2>&1 | cat
        exit "${PIPESTATUS[0]}"
    )
}

# in_vng_tree_module FOLDER NAME: builds a test module there, with debugging information as vng's
# configuration has it.
in_vng_tree_module() {
    local tree source=$TOP/tests/modules/$2
    tree=$(vng_tree) || return
    rm -rf "${tree:?}/test-$2"
    mkdir "$tree/test-$2"
    if [ -d "$source" ]; then
        cp "$source"/* "$tree/test-$2/"
    else
        cp "$source.c" "$tree/test-$2/"
        echo "obj-m += $2.o" >"$tree/test-$2/Kbuild"
    fi
    make -s -C "$tree" "M=$tree/test-$2" modules >"$1/build.log" 2>&1
    cp "$tree/test-$2/$2.ko" "$tree/$2.ko"
}

vng_build_leaky() {
    local status place
    in_vng_tree_module "$1" leaky || return
    in_vng_tree "$1" --exec 'insmod leaky.ko'
    status=$?
    expect_leaky "$1" 'leak_list+0x'
    for place in 'leaky.c:' 'init/main.c:'; do expect "$1" "$1/leaks.txt" "$place"; done
    return $status
}

vng_build_clean() {
    local status
    in_vng_tree "$1" --exec 'uname -r; ls /usr | wc -l'
    status=$?
    expect "$1" "$1/leaks.xml" 'failures="0" errors="0"'
    return $status
}

# Everything that the module loses is reported, and nothing else: the console has the truth.
vng_build_zoo() {
    local status lost reported
    in_vng_tree_module "$1" zoo || return
    in_vng_tree "$1" --exec 'insmod zoo.ko && sleep 3 && dmesg | grep "zoo: leak"'
    status=$?
    lost=$(sed -n 's/.*zoo: leak [^ ]* 0x\([0-9a-f]*\) .*/\1/p' "$1/stdout" | sort -u | wc -l)
    reported=$(grep -o '[0-9]* unreferenced objects' "$1/leaks.txt" | tail -n 1)
    echo "$lost lost, ${reported:-none} reported"
    # A stale word that equals an address may hide one.
    [ "$lost" -gt 50 ] && [ "${reported%% *}" -le "$lost" ] && [ "${reported%% *}" -ge $((lost - 1)) ] ||
        echo "$lost lost, ${reported:-none} reported" >>"$1/trouble"
    return $status
}

# The command fails where there is no KVM, and its status would come first.
vng_kvm() {
    local kernel image path status
    kernel=$(guest_kernel "$2") && image=$(vng_image "$kernel") && path=$(virtme_ng) || return
    PATH=$path:$PATH "$leak" run --keep-kvm --report "$1/leaks.xml" -- \
        sh -c "timeout 60 vng -r $image --user root --exec true </dev/null | cat; true"
    status=$?
    expect "$1" "$1/leaks.xml" '<error message=' KVM
    return $status
}

# kselftest FOLDER: the selftests' own harness, of a copy in FOLDER, under vng.
kselftest() {
    # The rest of this machine's files is read-only there.
    under_vng "$1" bookworm-backports-generic --per-test -- \
        --rwdir "$1/kselftest" --exec "cd $1/kselftest && ./run_kselftest.sh"
}

kselftest_copy() {
    local installed
    installed=$(kselftests) || return
    cp -a "$installed" "$1/kselftest"
}

kselftest_clean() {
    local status test
    kselftest_copy "$1" || return
    kselftest "$1"
    status=$?
    expect "$1" "$1/leaks.xml" 'failures="0" errors="0"'
    for test in $KSELFTESTS; do expect "$1" "$1/leaks.xml" "selftests: $test: "; done
    return $status
}

# One test more, which passes and leaks.
kselftest_leaky() {
    local status
    kselftest_copy "$1" && vng_module "$1" bookworm-backports-generic leaky || return
    mkdir "$1/kselftest/leaky"
    printf '#!/bin/sh\ninsmod %s/leaky.ko\n' "$1" >"$1/kselftest/leaky/insmod.sh"
    chmod +x "$1/kselftest/leaky/insmod.sh"
    # It comes before the others: its leaks must not be charged to them.
    sed -i '1a leaky:insmod.sh' "$1/kselftest/kselftest-list.txt"
    kselftest "$1"
    status=$?
    expect "$1" "$1/stdout" 'selftests: leaky: insmod.sh'
    expect_leaky "$1" 'failures="1" errors="0"'
    grep -A1 'selftests: leaky: insmod.sh' "$1/leaks.xml" | grep -q "<failure message=\"$LEAKY" ||
        echo "the leaks are not the test's" >>"$1/trouble"
    return $status
}

# kunit FOLDER [FILTER]: runs kunit.py with the kernel that it built. It finds QEMU on PATH.
kunit() {
    local tree
    tree=$(kunit_tree) || return
    (
        cd "$tree" || exit
        "$leak" run --per-test --report "$1/leaks.xml" --report "$1/leaks.jsonl" -- \
            ./tools/testing/kunit/kunit.py exec --arch=x86_64 --build_dir=.kunit --raw_output=all ${2:+"$2"}
    )
}

kunit_clean() {
    local status
    kunit "$1" 'list*'
    status=$?
    expect "$1" "$1/leaks.xml" 'failures="0" errors="0"' 'list-kunit-test'
    return $status
}

kunit_leaky() {
    local status
    kunit "$1"
    status=$?
    # Each suite of the kernel's own has run, and only the one that leaks has leaked.
    expect "$1" "$1/leaks.xml" 'failures="1" errors="0"' 'list-kunit-test' \
        '<failure message="1 leak, 256 bytes: 1 object of 256 bytes in leaky_lose'
    # The case is charged, and not its suite.
    grep -A1 '<testcase name="leaky/leaky_loses"' "$1/leaks.xml" | grep -q '<failure message="1 leak, ' ||
        echo "the leak is not the case's" >>"$1/trouble"
    grep -q 'leaky_kunit.c:' "$1/leaks.xml" || echo "no source lines" >>"$1/trouble"
    return $status
}

fuzz() { scripts/fuzz-example 1; }
