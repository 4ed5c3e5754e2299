# The kernel's own selftests, a few small ones, as an installed harness.
#
# Source it after common.sh and selfbuilt.sh; do not run it.

# Those that need nothing but the C library, and end soon.
KSELFTESTS="size kcmp sigaltstack"

# kselftests: builds and installs them below the cache, and prints the folder, with run_kselftest.sh in it.
kselftests() {
    local version source folder=$CACHE/kselftest wanted
    apt_tree "$SELFBUILT_SUITE"
    version=$(in_tree "$SELFBUILT_SUITE" apt-cache policy "linux-source-$SELFBUILT_SERIES" | awk '/Candidate:/ { print $2 }')
    source=$(selfbuilt_source "$SELFBUILT_SERIES" "$version") || return
    wanted="$version $KSELFTESTS"
    if [ "$(cat "$folder/built" 2>/dev/null)" != "$wanted" ]; then
        need_packages "$SELFBUILT_CC" make libc6-dev binutils rsync bison flex
        say "building selftests: $KSELFTESTS"
        rm -rf "$folder"
        mkdir -p "$folder/build"
        {
            make -s -C "$source" "O=$folder/build" headers "CC=$SELFBUILT_CC" "HOSTCC=$SELFBUILT_CC" &&
                make -s -C "$source/tools/testing/selftests" "O=$folder/build" "CC=$SELFBUILT_CC" "TARGETS=$KSELFTESTS" \
                    FORCE_TARGETS=1 install "INSTALL_PATH=$folder/install"
        } >"$folder/log" 2>&1 || {
            tail -n 20 "$folder/log" >&2
            die "could not build selftests; see $folder/log"
        }
        rm -rf "$folder/build"
        echo "$wanted" >"$folder/built"
    fi
    echo "$folder/install"
}
