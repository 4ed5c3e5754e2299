# The parts of a test guest besides its kernel: modules built for it, and an initramfs.
#
# Source it after common.sh, kernels.sh and roots.sh; do not run it.

# kernel_suite KERNELDIR: the Debian release whose tools build modules for that kernel.
kernel_suite() {
    case "$(basename "$1")" in
    bullseye*) echo bullseye ;;
    # Those are built from its package and with its compiler: see selfbuilt.sh.
    bookworm* | selfbuilt-*) echo bookworm ;;
    trixie*) echo trixie ;;
    *) die "do not know which Debian release $1 belongs to" ;;
    esac
}

# build_root SUITE: a folder to chroot into, with what builds modules for that release's kernels: their
# kbuild programs need its C library, and their makefiles name its compiler.
build_root() {
    local suite=$1 folder=$CACHE/roots/$1-build own
    case "$suite" in
    bullseye) own=(gcc-10 libelf1 libssl1.1) ;;
    trixie) own=(gcc-14 libelf1t64 libssl3t64) ;;
    *) die "do not know what builds modules of Debian $suite" ;;
    esac
    keep_root "$suite" "$folder" "${own[@]}" make libc6-dev binutils \
        bc kmod dash coreutils sed grep mawk findutils diffutils tar gzip xz-utils
    echo "$folder"
}

# build_module KERNELDIR SOURCE.c... OUTDIR, or KERNELDIR SOURCEDIR OUTDIR: builds kernel modules
# outside the kernel's tree and puts the .ko files into OUTDIR. Every SOURCE.c becomes one module.
# The Kbuild or Makefile of a SOURCEDIR lists its modules; without one, every .c file is a module.
# Nothing is built if the same sources were built for the same kernel before. Debugging information is
# left out; symbols stay.
#
# With --debug FOLDER before all else, FOLDER gets the same modules with their debugging information: the
# code is the same to the byte, as OUTDIR's are copies without it.
build_module() {
    local debug='' kernel out=${*: -1} sources
    if [ "$1" = --debug ]; then
        debug=$2
        shift 2
    fi
    kernel=$1
    sources=("${@:2:$#-2}")
    [ ${#sources[@]} -gt 0 ] || die "build_module: no sources"
    local stage key f
    stage=$(mktemp -d "$CACHE/module.XXXXXX")
    if [ -d "${sources[0]}" ]; then
        cp "${sources[0]}"/* "$stage/"
    else
        cp "${sources[@]}" "$stage/"
    fi
    if [ ! -e "$stage/Kbuild" ] && [ ! -e "$stage/Makefile" ]; then
        for f in "$stage"/*.c; do
            f=$(basename "$f" .c)
            echo "obj-m += $f.o"
        done >"$stage/Kbuild"
    fi
    # shellcheck disable=SC2012
    key=$(cd "$stage" && { sha256sum -- *; cat "$kernel/packages"; } | sha256sum | cut -c 1-20)
    local cached
    cached=$CACHE/modules/$(basename "$kernel")-$key${debug:+-debug}
    if [ ! -d "$cached" ]; then
        compile_module "$kernel" "$stage" "${debug:+-g}" || { rm -rf "$stage"; die "could not build ${sources[*]} for $(basename "$kernel")"; }
        mkdir -p "$cached.$$"
        cp "$stage"/*.ko "$cached.$$/"
        # Another process may have built the same.
        mv -T "$cached.$$" "$cached" 2>/dev/null || rm -rf "$cached.$$"
    fi
    rm -rf "$stage"
    mkdir -p "$out"
    # Unchanged files are not written: others may be reading them.
    if [ -n "$debug" ]; then
        mkdir -p "$debug"
        install -C -m 644 "$cached"/*.ko "$debug/"
        for f in "$cached"/*.ko; do strip --strip-debug -o "$out/$(basename "$f")" "$f"; done
    else
        install -C -m 644 "$cached"/*.ko "$out/"
    fi
}

# compile_module KERNELDIR STAGE [-g]: runs kbuild in STAGE. Debugging information stays with -g only.
compile_module() {
    local kernel=$1 stage=$2 debug=${3:-} release suite tree command root
    release=$(cat "$kernel/release")
    suite=$(kernel_suite "$kernel")
    tree=$kernel/root/usr/src/linux-headers-$release
    # Type information for the module is not needed and costs a run of pahole. Debugging information
    # has the names of folders in it, and so has the build id: the random name of the stage must not
    # stay. The last map that fits is taken, in the folder and as the folder itself.
    command=(make -s -C "$tree" "M=$stage"
        "KCFLAGS=${debug:--g0} -ffile-prefix-map=$stage=. -ffile-prefix-map=$stage/="
        CONFIG_DEBUG_INFO_BTF_MODULES= modules)
    say "building modules for $release"
    case "$suite" in
    bookworm)
        need_packages gcc-12 make libc6-dev binutils libelf1
        "${command[@]}" >"$stage/log" 2>&1
        ;;
    *)
        root=$(build_root "$suite") || return 1
        run_in_root "$root" "$stage:$kernel" "${command[@]}" >"$stage/log" 2>&1
        ;;
    esac || {
        cat "$stage/log" >&2
        return 1
    }
    # Distribution modules carry no debugging information either.
    [ -n "$debug" ] || strip --strip-debug "$stage"/*.ko
}

# kmemleak_sample KERNELDIR OUTDIR: builds the kernel's own samples/kmemleak/kmemleak-test.c, of the
# kernel's series, into OUTDIR/kmemleak-test.ko.
kmemleak_sample() {
    local kernel=$1 out=$2 folder
    folder=$(kmemleak_sample_source "$kernel")
    build_module "$kernel" "$folder/kmemleak-test.c" "$out"
}

# kmemleak_sample_source KERNELDIR: the folder with that file, from the newest linux-source package of
# the kernel's series. The package is large and one small file is kept, once for each series: point
# releases do not change it. FOLDER/version says which package it came from.
kmemleak_sample_source() {
    local kernel=$1 suite series package version folder work
    suite=$(kernel_suite "$kernel")
    series=$(sed 's/^\([0-9]*\.[0-9]*\).*/\1/' "$kernel/release")
    package=linux-source-$series
    folder=$CACHE/samples/$series
    if [ ! -e "$folder/version" ]; then
        apt_tree "$suite"
        version=$(in_tree "$suite" apt-cache policy "$package" | awk '/Candidate:/ { print $2 }')
        [ -n "$version" ] && [ "$version" != "(none)" ] || die "Debian $suite has no $package"
        need_packages xz-utils
        say "taking the kmemleak sample out of $package $version (some 150 MB to download)"
        work=$(mktemp -d "$CACHE/fetch.XXXXXX")
        (cd "$work" && in_tree "$suite" apt-get download -qq "$package=$version" >/dev/null) ||
            { rm -rf "$work"; die "could not download $package"; }
        # Stopping at the one file breaks the pipe before it, which is no failure.
        (
            set +o pipefail
            dpkg-deb --fsys-tarfile "$work"/*.deb 2>/dev/null |
                tar -xO "./usr/src/$package.tar.xz" 2>/dev/null | xz -dc -T 0 2>/dev/null |
                tar -xO --occurrence=1 "$package/samples/kmemleak/kmemleak-test.c" >"$work/kmemleak-test.c"
        ) || { rm -rf "$work"; die "$package has no kmemleak sample"; }
        mkdir -p "$folder"
        mv "$work/kmemleak-test.c" "$folder/"
        rm -rf "$work"
        echo "$package $version" >"$folder/version"
    fi
    echo "$folder"
}

# guest_busybox: the static busybox of every guest, from bookworm on any machine.
guest_busybox() {
    local folder=$CACHE/busybox version
    apt_tree bookworm
    version=$(in_tree bookworm apt-cache policy busybox-static | awk '/Candidate:/ { print $2 }')
    if [ "$(cat "$folder/version" 2>/dev/null)" != "$version" ]; then
        rm -rf "$folder"
        fetch_packages bookworm "$folder/root" "busybox-static=$version"
        cp "$(find "$folder/root" -name busybox -type f -path '*/bin/*')" "$folder/busybox"
        rm -rf "$folder/root"
        echo "$version" >"$folder/version"
    fi
    echo "$folder/busybox"
}

# guest_stress_ng: stress-ng, from trixie whatever this machine is, as SRC:DST lines: the program, the
# libraries it is linked with, and the dynamic linker that it names.
guest_stress_ng() {
    local folder=$CACHE/roots/stress-ng linker=lib64/ld-linux-x86-64.so.2 file
    keep_root trixie "$folder" stress-ng
    echo "$folder/usr/bin/stress-ng:bin/stress-ng"
    echo "$(realpath "$folder/$linker"):$linker"
    "$folder/$linker" --library-path "$folder/usr/lib/x86_64-linux-gnu" --list "$folder/usr/bin/stress-ng" |
        awk '$2 == "=>" { print $3 }' | while read -r file; do
        # One of the places where the linker looks, by the name under which it looks.
        echo "$(realpath "$file"):lib/$(basename "$file")"
    done
}

# kernel_depmod KERNELDIR: the module indexes that the kernel package's postinst would have made.
kernel_depmod() {
    local kernel=$1
    [ -e "$kernel/modules/.indexed" ] && return 0
    need_packages kmod
    # Newer packages have no modules.order. depmod says so, which does not matter.
    /sbin/depmod -b "$kernel/root/usr" "$(cat "$kernel/release")" 2>/dev/null
    touch "$kernel/modules/.indexed"
}

# kernel_modules KERNELDIR NAME...: the files of the named distribution modules and of everything they
# depend on, in the order to load them. What the kernel has built in, or has not at all, is left out.
kernel_modules() {
    local kernel=$1 name
    shift
    kernel_depmod "$kernel"
    for name in "$@"; do
        # An empty configuration: this machine's own /etc/modprobe.d has no say in a guest.
        /sbin/modprobe -C /dev/null -d "$kernel/root/usr" -S "$(cat "$kernel/release")" --show-depends "$name" 2>/dev/null |
            awk '$1 == "insmod" { print $2 }' || say "$(basename "$kernel") has no module $name"
    done | awk '!seen[$0]++'
}

# make_initramfs KERNELDIR OUT.cpio.gz [--init FILE] [--module M.ko]... [--file SRC:DST]... [--kmods A,B,...]
# writes an initramfs: busybox with all its applets, FILE (scripts/guest/init unless said) as
# /init, the other files of scripts/guest below /guest, the given modules in /modules, distribution
# modules with their dependencies where modprobe finds them. The same input gives the same bytes.
make_initramfs() {
    local kernel=$1 out=$2 init=$TOP/scripts/guest/init kmods='' modules=() files=()
    shift 2
    while [ $# -gt 0 ]; do
        case "$1" in
        --init) init=$2 ;;
        --module) modules+=("$2") ;;
        --file) files+=("$2") ;;
        --kmods) kmods=$2 ;;
        *) die "make_initramfs: unknown argument $1" ;;
        esac
        shift 2
    done
    need_packages cpio kmod xz-utils
    local stage busybox applet f release
    busybox=$(guest_busybox)
    release=$(cat "$kernel/release")
    stage=$(mktemp -d "$CACHE/initramfs.XXXXXX")
    mkdir -p "$stage"/{bin,dev,etc,guest,modules,proc,run,sys,tmp}
    # One folder for all programs; the kernel itself asks for /sbin/modprobe.
    ln -s bin "$stage/sbin"
    cp "$busybox" "$stage/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$stage/bin/$applet"
    done
    for f in "$TOP"/scripts/guest/*; do
        [ "$f" = "$TOP/scripts/guest/init" ] || install -m 755 "$f" "$stage/guest/"
    done
    install -m 755 "$init" "$stage/init"
    for f in "${modules[@]}"; do install -m 644 "$f" "$stage/modules/"; done
    for f in "${files[@]}"; do install -D -m 755 "${f%%:*}" "$stage/${f#*:}"; done
    if [ -n "$kmods" ]; then
        local names target
        IFS=, read -ra names <<<"$kmods"
        # Kept at their places below kernel/, but plain: unpacking them in the guest is slow.
        while read -r f; do
            target=$stage/lib/modules/$release/${f#*"/lib/modules/$release/"}
            mkdir -p "$(dirname "$target")"
            case "$f" in
            *.xz) xz -dc "$f" >"${target%.xz}" ;;
            *.zst) need_packages zstd && zstd -qdc "$f" >"${target%.zst}" ;;
            *) cp "$f" "$target" ;;
            esac
        done < <(kernel_modules "$kernel" "${names[@]}")
        if [ -d "$stage/lib/modules/$release" ]; then
            /sbin/depmod -b "$stage" "$release" 2>/dev/null
            # busybox reads the text files only.
            rm -f "$stage/lib/modules/$release"/modules.{*.bin,devname,softdep,symbols}
        fi
    fi
    chmod -R u=rwX,go=rX "$stage"
    # The same input must give the same bytes: fixed times, a fixed order, no owner, no file name in
    # the gzip.
    find "$stage" -exec touch -h -d @0 {} +
    mkdir -p "$(dirname "$out")"
    (cd "$stage" && find . -print0 | LC_ALL=C sort -z |
        cpio --null --create --format newc --reproducible --owner 0:0 --quiet | gzip -n) >"$out.$$"
    mv "$out.$$" "$out"
    rm -rf "$stage"
}
