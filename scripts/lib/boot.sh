# Boots a test guest in QEMU.
#
# Source it after common.sh (and roots.sh for --root); do not run it.

# grub_image KERNELDIR INITRD APPEND: makes a disk image with GRUB, the kernel and the initramfs, and
# prints its path. There is one at a time: it holds a copy of both.
grub_image() {
    local kernel=$1 initrd=$2 append=$3 folder=$CACHE/guests/grub
    need_packages grub-common grub-pc-bin mtools xorriso
    rm -rf "$folder"
    mkdir -p "$folder/boot/grub"
    cp "$kernel/vmlinuz" "$folder/boot/vmlinuz"
    cp "$initrd" "$folder/boot/initrd.gz"
    printf 'set timeout=0\nmenuentry guest {\n  linux /boot/vmlinuz %s\n  initrd /boot/initrd.gz\n}\n' "$append" \
        >"$folder/boot/grub/grub.cfg"
    grub-mkrescue -o "$CACHE/guests/grub.iso" "$folder" >"$CACHE/guests/grub.log" 2>&1 ||
        die "grub-mkrescue failed; see $CACHE/guests/grub.log"
    echo "$CACHE/guests/grub.iso"
}

# boot_guest KERNELDIR INITRD [OPTION...] [-- QEMU-ARGUMENT...]: boots to the end and returns QEMU's
# status, 124 when it took too long.
#   --append WORDS     added to the kernel command line
#   --console FILE     where the guest's console goes; "-", which is also the default, is stdout
#   --smp N            processors (1)
#   --memory M         in MiB (512)
#   --machine NAME     pc unless said
#   --accel WORDS      tcg unless said
#   --cpu NAME         QEMU's own choice unless said
#   --timeout SECONDS  after which QEMU is killed (120)
#   --qemu COMMAND     instead of qemu-system-x86_64
#   --loader grub      boots through firmware and GRUB from a disk image, and not with -kernel
#   --root FOLDER      run QEMU inside FOLDER (see run_in_root)
#   --bind DIR         there too, at the same path (the kernel, the initrd and the console always are)
boot_guest() {
    local kernel=$1 initrd=$2 append='' console=- smp=1 memory=512 machine=pc accel=tcg cpu='' limit=120
    local qemu=qemu-system-x86_64 root='' binds='' loader=''
    shift 2
    while [ $# -gt 0 ]; do
        case "$1" in
        --append) append=$2 ;;
        --console) console=$2 ;;
        --smp) smp=$2 ;;
        --memory) memory=$2 ;;
        --machine) machine=$2 ;;
        --accel) accel=$2 ;;
        --cpu) cpu=$2 ;;
        --timeout) limit=$2 ;;
        --qemu) qemu=$2 ;;
        --loader) loader=$2 ;;
        --root) root=$2 ;;
        --bind) binds=$binds:$(realpath "$2") ;;
        --) break ;;
        *) die "boot_guest: unknown option $1" ;;
        esac
        shift 2
    done
    [ "${1:-}" != -- ] || shift
    kernel=$(realpath "$kernel")
    initrd=$(realpath "$initrd")
    append="console=ttyS0 panic=-1${append:+ $append}"
    local command=("$qemu" -nodefaults -no-user-config -display none -no-reboot -accel "$accel"
        -machine "$machine" -smp "$smp" -m "$memory")
    case "$loader" in
    '') command+=(-kernel "$kernel/vmlinuz" -initrd "$initrd" -append "$append") ;;
    grub) command+=(-cdrom "$(grub_image "$kernel" "$initrd" "$append")") ;;
    *) die "boot_guest: unknown loader $loader" ;;
    esac
    [ -z "$cpu" ] || command+=(-cpu "$cpu")
    if [ "$console" = - ]; then
        command+=(-serial stdio)
    else
        console=$(realpath -m "$console")
        mkdir -p "$(dirname "$console")"
        command+=(-serial "file:$console")
        binds=$(dirname "$console")$binds
    fi
    command+=("$@")
    if [ -n "$root" ]; then
        binds=${binds#:}
        binds=${binds:+$binds:}$kernel:$(dirname "$initrd")
        # timeout runs programs and no functions, so it gets a shell.
        timeout --kill-after=5 "$limit" bash -c "$(declare -f run_in_root)"'; run_in_root "$@"' bash \
            "$root" "$binds" "${command[@]}" </dev/null
    else
        timeout --kill-after=5 "$limit" "${command[@]}" </dev/null
    fi
}
