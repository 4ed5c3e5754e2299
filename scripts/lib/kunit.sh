# A kernel with KUnit's tests, built by the kernel's own kunit.py.
#
# Source it after common.sh and selfbuilt.sh; do not run it.

# What the kernel's own default configuration for kunit.py lacks: the types of its structs.
KUNIT_ADD=(--kconfig_add CONFIG_DEBUG_KERNEL=y --kconfig_add CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y)

# kunit_tree: prints a kernel tree with one more suite, which leaks (scripts/kunit), and a kernel
# built in .kunit there with the default configuration. Takes some minutes of a processor when the
# sources are new.
kunit_tree() {
    local version source tree=$CACHE/kunit wanted
    apt_tree "$SELFBUILT_SUITE"
    version=$(in_tree "$SELFBUILT_SUITE" apt-cache policy "linux-source-$SELFBUILT_SERIES" | awk '/Candidate:/ { print $2 }')
    source=$(selfbuilt_source "$SELFBUILT_SERIES" "$version") || return
    wanted="$version ${KUNIT_ADD[*]} $(cat "$TOP"/scripts/kunit/* | sha256sum | cut -c 1-20)"
    if [ "$(cat "$tree/.wanted" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$tree"
        # Links to the files there, except for what is changed, and for kunit.py, which looks beside
        # itself.
        cp -as "$source" "$tree"
        rm -rf "$tree/tools/testing/kunit"
        cp -a "$source/tools/testing/kunit" "$tree/tools/testing/kunit"
        rm "$tree/lib/kunit/Makefile" "$tree/lib/kunit/Kconfig"
        { cat "$source/lib/kunit/Makefile"; echo 'obj-$(CONFIG_KUNIT_LEAKY_TEST) += leaky_kunit.o'; } >"$tree/lib/kunit/Makefile"
        {
            cat "$source/lib/kunit/Kconfig"
            printf 'config KUNIT_LEAKY_TEST\n\tbool "A suite that leaks"\n\tdepends on KUNIT=y\n\tdefault KUNIT_ALL_TESTS\n'
        } >"$tree/lib/kunit/Kconfig"
        cp "$TOP/scripts/kunit/leaky_kunit.c" "$tree/lib/kunit/"
        echo "$wanted" >"$tree/.wanted"
    fi
    if [ ! -e "$tree/.built" ]; then
        need_packages "$SELFBUILT_CC" make libc6-dev binutils bc bison flex libelf-dev python3
        say "building a kernel with KUnit: some minutes"
        # It prints its progress on stdout.
        kunit_py "$tree" build --jobs="$(nproc)" >"$tree/build.log" 2>&1 || {
            tail -n 20 "$tree/build.log" >&2
            die "could not build a kernel with KUnit; see $tree/build.log"
        }
        touch "$tree/.built"
    fi
    echo "$tree"
}

# kunit_py TREE COMMAND ARGUMENT...: the tree's kunit.py, there.
kunit_py() {
    local tree=$1 command=$2
    shift 2
    (cd "$tree" && ./tools/testing/kunit/kunit.py "$command" --arch=x86_64 --build_dir=.kunit "${KUNIT_ADD[@]}" \
        --make_options "CC=$SELFBUILT_CC" --make_options "HOSTCC=$SELFBUILT_CC" "$@")
}
