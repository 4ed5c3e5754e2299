# virtme-ng, and kernels as it takes them.
#
# Source it after common.sh, kernels.sh, roots.sh and guest.sh; do not run it.

VIRTME_NG_VERSION=1.42

# virtme_ng: installs PyPI's virtme-ng below the cache, for nobody else, and prints a folder for PATH: vng and what it looks
# for there.
virtme_ng() {
    local folder=$CACHE/virtme-ng-$VIRTME_NG_VERSION busybox python=${PYTHON:-python3}
    # Without udev in the root file system, which is this machine's, the guest's programs have neither output nor status.
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
    # It makes its initramfs of a static one.
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
    # The folder is made anew for another version.
    [ -e "$image" ] || cp "$kernel/vmlinuz" "$image"
    echo "$image"
}
