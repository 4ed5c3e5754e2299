# Guest kernels built here, for what no distribution kernel has: kmemleak, or other options.
#
# Source it after common.sh; do not run it. guest_kernel knows these names.
#
# A kernel is named selfbuilt-VARIANT. Its configuration is tinyconfig, scripts/kernel-config/base.config and
# scripts/kernel-config/VARIANT.config over that: a new variant is a new file. Each lives in
# $CACHE/kernels/NAME, laid out as kernels.sh says, with these besides:
#   vmlinux      its symbols, and its types also where the kernel itself has none
#   debug/       vmlinux and its modules with debugging information, to give to debug=
#   config       its whole configuration

# The newest linux-source package of this series is built, with the compiler and the tools that build
# modules for that release's own kernels.
SELFBUILT_SUITE=bookworm
SELFBUILT_SERIES=6.12
SELFBUILT_CC=gcc-12
# These are of another series of the same suite.
declare -A SELFBUILT_SERIES_OF=([selfbuilt-kfence]=6.1)

# selfbuilt_source SERIES VERSION: unpacks that version of the package and prints the folder. All variants
# of a series are built from it; there is one version at a time, since it is large.
selfbuilt_source() {
    local package=linux-source-$1 version=$2 folder=$CACHE/sources/linux-$1 work
    if [ "$(cat "$folder/.version" 2>/dev/null)" != "$version" ]; then
        say "fetching $package $version (some 150 MB to download, 1.7 GB unpacked)"
        work=$(mktemp -d "$CACHE/fetch.XXXXXX")
        fetch_packages "$SELFBUILT_SUITE" "$work" "$package=$version"
        rm -rf "$folder" "$folder.new"
        mkdir -p "$folder.new"
        tar -xf "$work/usr/src/$package.tar.xz" -C "$folder.new" --strip-components=1 ||
            die "could not unpack $package"
        rm -rf "$work"
        echo "$version" >"$folder.new/.version"
        mv "$folder.new" "$folder"
    fi
    echo "$folder"
}

# selfbuilt_configure SOURCE BUILD FRAGMENT...: makes BUILD/.config. Later fragments win. What a fragment
# asks for and the kernel has not, for want of something else, is an error.
selfbuilt_configure() {
    local source=$1 build=$2 make missing
    shift 2
    make=(make -s -C "$source" "O=$build" "CC=$SELFBUILT_CC" "HOSTCC=$SELFBUILT_CC")
    "${make[@]}" tinyconfig &&
        (cd "$source" && scripts/kconfig/merge_config.sh -m -O "$build" "$build/.config" "$@") &&
        "${make[@]}" olddefconfig || return
    missing=$(awk -F= '
        FILENAME != config && /^CONFIG_/ { wanted[$1] = substr($0, length($1) + 2) }
        FILENAME == config && /^CONFIG_/ { have[$1] = substr($0, length($1) + 2) }
        END {
            for (name in wanted)
                if (wanted[name] != (name in have ? have[name] : "n")) print name "=" wanted[name]
        }' config="$build/.config" "$@" "$build/.config")
    [ -z "$missing" ] || { echo "the configuration did not get: ${missing//$'\n'/ }"; return 1; }
}

# selfbuilt_make NAME SOURCE BUILD OUT: builds in BUILD and fills OUT. Everything it says is for a log.
selfbuilt_make() {
    local name=$1 source=$2 build=$3 out=$4 make release tree
    mkdir -p "$build" "$out"
    echo "CONFIG_LOCALVERSION=\"-$name\"" >"$build/name.config"
    selfbuilt_configure "$source" "$build" "$TOP/scripts/kernel-config/base.config" \
        "$TOP/scripts/kernel-config/${name#selfbuilt-}.config" "$build/name.config" || return
    # No name of this machine gets into the kernel.
    make=(nice -n 5 make -s -C "$source" "O=$build" "-j$(nproc)" "CC=$SELFBUILT_CC" "HOSTCC=$SELFBUILT_CC"
        KBUILD_BUILD_USER=libleak KBUILD_BUILD_HOST=libleak)
    "${make[@]}" bzImage modules || return
    release=$(cat "$build/include/config/kernel.release")
    # depmod comes later: see kernel_depmod.
    "${make[@]}" "INSTALL_MOD_PATH=$out/root/usr" INSTALL_MOD_STRIP=1 DEPMOD=true modules_install || return
    rm -f "$out/root/usr/lib/modules/$release/build"
    # What builds modules outside the tree, as distributions package it.
    tree=$out/root/usr/src/linux-headers-$release
    "${make[@]}" run-command KBUILD_RUN_COMMAND="\$(srctree)/scripts/package/install-extmod-build $tree" || return
    cp "$build/.config" "$tree/.config" || return
    # A build of a module does not need to know the compiler.
    sed -i "s/^\(CC\t*= \)\$(CROSS_COMPILE)gcc\$/\1$SELFBUILT_CC/; s/^\(HOSTCC\t*= \)gcc\$/\1$SELFBUILT_CC/" "$tree/Makefile"
    if ! grep -q '^CONFIG_DEBUG_INFO_BTF=y' "$build/.config"; then
        pahole -J --btf_gen_floats "$build/vmlinux" || return
    fi
    strip --strip-debug -o "$out/vmlinux" "$build/vmlinux" || return
    # This file is ten times as large and not needed for symbols alone.
    mkdir -p "$out/debug" || return
    cp "$build/vmlinux" "$out/debug/vmlinux" || return
    find "$build" -name '*.ko' -exec cp -t "$out/debug" {} + || return
    cp "$build/.config" "$out/config" || return
    cp "$build/arch/x86/boot/bzImage" "$out/vmlinuz" || return
    ln -s "root/usr/lib/modules/$release" "$out/modules"
    echo "$release" >"$out/release"
}

# selfbuilt_kernel NAME: builds the kernel of that name, if it is not here as its package and fragments now
# are, and prints its folder.
selfbuilt_kernel() {
    local name=$1 dir=$CACHE/kernels/$1 series package config version wanted source
    series=${SELFBUILT_SERIES_OF[$name]:-$SELFBUILT_SERIES}
    package=linux-source-$series
    config=$TOP/scripts/kernel-config
    [ "$name" != selfbuilt-base ] && [ -e "$config/${name#selfbuilt-}.config" ] ||
        die "there is no kernel $name; see scripts/kernel-config"
    apt_tree "$SELFBUILT_SUITE"
    # A changed comment makes no new kernel.
    config=$({
        cat "$config/base.config" "$config/${name#selfbuilt-}.config" | grep -v '^#'
        declare -f selfbuilt_configure selfbuilt_make
    } | sha256sum | cut -c 1-20)
    # Asking apt takes seconds, and the answer only changes with its lists.
    if [ "$dir/checked" -nt "$CACHE/apt/$SELFBUILT_SUITE/fresh" ] && grep -qx "config=$config" "$dir/packages"; then
        echo "$dir"
        return
    fi
    mkdir -p "$CACHE/kernels"
    (
        # Two builds at once would take longer than one after the other; and the second may find its
        # kernel built by the first.
        flock 9
        version=$(in_tree "$SELFBUILT_SUITE" apt-cache policy "$package" | awk '/Candidate:/ { print $2 }')
        [ -n "$version" ] && [ "$version" != "(none)" ] || die "Debian $SELFBUILT_SUITE has no $package"
        wanted=$(printf '%s\n' "$package=$version" "config=$config")
        if [ "$(cat "$dir/packages" 2>/dev/null)" != "$wanted" ]; then
            need_packages "$SELFBUILT_CC" make libc6-dev binutils bc bison flex libelf-dev dwarves kmod xz-utils
            source=$(selfbuilt_source "$series" "$version") || exit
            say "building $name from $package $version: some minutes"
            rm -rf "$dir.new" "$dir.build"
            selfbuilt_make "$name" "$source" "$dir.build" "$dir.new" >"$dir.log" 2>&1 </dev/null || {
                tail -n 20 "$dir.log" >&2
                rm -rf "$dir.new" "$dir.build"
                die "could not build $name; see $dir.log"
            }
            echo "$wanted" >"$dir.new/packages"
            rm -rf "$dir" "$dir.build" "$dir.log"
            mv "$dir.new" "$dir" || exit
        fi
        touch "$dir/checked"
    ) 9>"$CACHE/kernels/selfbuilt.lock" || return
    echo "$dir"
}
