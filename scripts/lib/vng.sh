# virtme-ng, and kernels in the form that it takes.
#
# Source it after common.sh, kernels.sh, roots.sh, guest.sh and selfbuilt.sh; do not run it.

VIRTME_NG_VERSION=1.42

# virtme_ng: installs PyPI's virtme-ng below the cache and prints a folder for PATH, with vng and
# the programs that it looks for there.
virtme_ng() {
    local folder=$CACHE/virtme-ng-$VIRTME_NG_VERSION busybox python=${PYTHON:-python3}
    # The guest's root file system is this machine's. Without udev in it, the guest's programs have
    # neither output nor status.
    need_packages udev kmod
    if [ ! -e "$folder/ready" ]; then
        rm -rf "$folder"
        say "installing virtme-ng $VIRTME_NG_VERSION from PyPI"
        "$python" -c 'import ensurepip, venv' 2>/dev/null || {
            need_packages python3 python3-venv
            python=/usr/bin/python3
        }
        { "$python" -m venv "$folder" && "$folder/bin/pip" install -q "virtme-ng==$VIRTME_NG_VERSION"; } >&2 ||
            die "could not install virtme-ng $VIRTME_NG_VERSION; is there a way to PyPI (pip config list)?"
        touch "$folder/ready"
    fi
    # vng makes its initramfs of a static busybox.
    busybox=$(guest_busybox)
    ln -sf "$busybox" "$folder/bin/busybox"
    echo "$folder/bin"
}

# vng_image KERNELDIR: the kernel's image where vng finds its modules beside it.
vng_image() {
    local kernel=$1 image
    image=$kernel/root/boot/vmlinuz-$(cat "$kernel/release")
    kernel_depmod "$kernel"
    mkdir -p "$kernel/root/boot"
    # The folder is new for each version.
    [ -e "$image" ] || cp "$kernel/vmlinuz" "$image"
    echo "$image"
}

# vng_tree: prints a kernel tree that `vng --build` has built, with virtme-ng's own configuration.
# Takes about 25 minutes of a processor when the sources are new. A build that was interrupted goes
# on where it stopped.
vng_tree() {
    local version source path tree=$CACHE/vng-tree
    path=$(virtme_ng) || return
    apt_tree "$SELFBUILT_SUITE"
    version=$(in_tree "$SELFBUILT_SUITE" apt-cache policy "linux-source-$SELFBUILT_SERIES" | awk '/Candidate:/ { print $2 }')
    source=$(selfbuilt_source "$SELFBUILT_SERIES" "$version") || return
    # Not .version, in which the kernel's build counts.
    if [ "$(cat "$tree/.of-source" 2>/dev/null)" != "$version" ]; then
        rm -rf "$tree" "$tree.new"
        cp -a "$source" "$tree.new"
        echo "$version" >"$tree.new/.of-source"
        mv "$tree.new" "$tree"
    fi
    if [ ! -e "$tree/.built" ]; then
        need_packages gcc make libc6-dev binutils bc bison flex libelf-dev libssl-dev dwarves
        say "building a kernel with vng --build: many minutes"
        (cd "$tree" && PATH=$path:$PATH vng --build) >"$tree.log" 2>&1 </dev/null || {
            tail -n 20 "$tree.log" >&2
            die "vng could not build a kernel; see $tree.log"
        }
        touch "$tree/.built"
    fi
    echo "$tree"
}
