# The QEMUs that libleak is tried with: the one installed here, and others unpacked below the cache.
#
# Source it after common.sh and roots.sh; do not run it.

# The oldest QEMU that the plugin runs in.
QEMU_MINIMUM=9.2

# qemu_works: whether a qemu-system-x86_64 is here that is new enough and takes plugins.
qemu_works() {
    local version
    version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] || return 1
    [ "$(printf '%s\n' "$QEMU_MINIMUM" "$version" | sort -V | head -n 1)" = "$QEMU_MINIMUM" ] || return 1
    # Without plugin support the option is not in the help.
    qemu-system-x86_64 -help | grep -q '^-plugin'
}

# need_qemu: makes sure of that. A Debian release whose own QEMU is too old has a newer one in its
# backports pocket, which is read through a private apt: this machine's package sources stay as
# they are.
need_qemu() {
    local codename tree packages=(qemu-system-x86 qemu-system-common qemu-system-data)
    qemu_works && return 0
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${ID:-} ${VERSION_CODENAME:-}")
    case "$codename" in
    "debian "?*) codename=${codename#debian } ;;
    *) die "install qemu-system-x86_64 $QEMU_MINIMUM or newer, built with plugin support" ;;
    esac
    apt_tree "$codename"
    tree=$CACHE/apt/$codename
    say "installing QEMU from Debian $codename-backports or newer"
    # The real status file: what is installed here already is not to be installed again. State
    # that apt keeps of what was installed by hand belongs to this machine too.
    as_root env APT_CONFIG="$tree/apt.conf" DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        -o Dir::State::status=/var/lib/dpkg/status -o Dir::State::extended_states=/var/lib/apt/extended_states \
        --no-install-recommends -t "$codename-backports" "${packages[@]}" >/dev/null ||
        die "could not install QEMU from $codename-backports"
    qemu_works || die "the QEMU of $codename-backports is older than $QEMU_MINIMUM, or has no plugin support"
}

# qemu_root_new: a folder with the QEMU of trixie-backports, for run_in_root, boot_guest --root and
# qemu_wrapper.
qemu_root_new() {
    local folder=$CACHE/qemu/trixie-backports
    keep_root trixie-backports "$folder" qemu-system-x86
    echo "$folder"
}

# qemu_wrapper FOLDER PROGRAM: a command that runs PROGRAM of FOLDER, with FOLDER's own libraries and
# firmware, and everything else, such as the files it is given, as it is outside.
qemu_wrapper() {
    local folder=$1 program=$2 wrapper=$1/run-$2 data=
    case "$program" in
    qemu-system-*)
        # It looks for its firmware beside the program, which through a dynamic linker is elsewhere.
        data="-L '$folder/usr/share/qemu' -L '$folder/usr/share/seabios' -L '$folder/usr/lib/ipxe/qemu'"
        ;;
    esac
    cat >"$wrapper.$$" <<WRAPPER
#!/bin/sh
export QEMU_MODULE_DIR='$folder/usr/lib/x86_64-linux-gnu/qemu'
exec '$folder/lib64/ld-linux-x86-64.so.2' \\
    --library-path '$folder/usr/lib/x86_64-linux-gnu:$folder/usr/lib' \\
    '$folder/usr/bin/$program' $data "\$@"
WRAPPER
    chmod +x "$wrapper.$$"
    mv "$wrapper.$$" "$wrapper"
    echo "$wrapper"
}

# qemu_new: that one as a command. Unlike a folder to chroot into, it needs no rights.
qemu_new() {
    local folder
    folder=$(qemu_root_new)
    qemu_wrapper "$folder" qemu-system-x86_64
}

# The plugin must refuse these, and say why. Each prints a command that takes QEMU's arguments.

# qemu_old: too old a QEMU.
qemu_old() {
    local folder=$CACHE/qemu/bookworm
    keep_root bookworm "$folder" qemu-system-x86 qemu-user
    qemu_wrapper "$folder" qemu-system-x86_64
}

# qemu_user: no machine, but a program of the host's. The newer releases' one is linked statically,
# which leaves no way to load a plugin; bookworm's is the last that takes -plugin.
qemu_user() {
    local folder=$CACHE/qemu/bookworm
    keep_root bookworm "$folder" qemu-system-x86 qemu-user
    qemu_wrapper "$folder" qemu-x86_64
}

# qemu_aarch64: another architecture.
qemu_aarch64() {
    local folder=$CACHE/qemu/bookworm-backports
    keep_root bookworm-backports "$folder" qemu-system-arm
    qemu_wrapper "$folder" qemu-system-aarch64
}

# qemu_release [COMMAND]: the installed QEMU's version, or that of COMMAND, as 10.0.2.
qemu_release() {
    "${1:-qemu-system-x86_64}" --version | sed -n '1s/.*version \([0-9.]*\).*/\1/p'
}

# plugin_api [COMMAND]: the plugin API version that this QEMU takes, of those that the empty and the
# busy plugin can ask for.
plugin_api() {
    if [ "$(printf '%s\n' 11.1 "$(qemu_release "${1:-}")" | sort -V | head -n 1)" = 11.1 ]; then echo 7; else echo 4; fi
}
