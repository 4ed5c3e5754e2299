# Folders to chroot into, with programs of a Debian release other than this machine's own.
#
# Source it after common.sh; do not run it.

# keep_root SUITE[-backports] FOLDER PACKAGE...: a folder made by fetch_root, and made again when the
# newest version of one of the named packages changes. FOLDER/.packages says what is in it.
keep_root() {
    local pocket=$1 suite=${1%-backports} folder=$2 wanted
    shift 2
    apt_tree "$suite"
    # A plain suite means its newest, which the security pocket may hold: no -t then.
    [ "$pocket" != "$suite" ] || pocket=now
    wanted=$(in_tree "$suite" apt-cache -t "$pocket" policy "$@" |
        awk '/^[^ ]/ { sub(":$", ""); name = $1 } /Candidate:/ && $2 != "(none)" { print name "=" $2 }')
    [ "$(wc -l <<<"$wanted")" = $# ] || die "Debian $1 does not have all of $*"
    [ "$(cat "$folder/.packages" 2>/dev/null)" != "$wanted" ] || return 0
    say "unpacking $1 of Debian $suite and what it needs"
    mkdir -p "$(dirname "$folder")"
    # Two at once would empty each other's archives folder.
    (
        flock 9
        # shellcheck disable=SC2086 # one word each
        fetch_root "$suite" "$folder" -t "$pocket" $wanted
    ) 9>"$CACHE/apt/$suite/root.lock"
    root_links "$folder"
    echo "$wanted" >"$folder/.packages"
}

# root_links FOLDER: the few links and files that maintainer scripts would have made.
root_links() {
    local folder=$1
    [ -e "$folder/usr/bin/sh" ] || ln -s dash "$folder/usr/bin/sh"
    [ -e "$folder/usr/bin/awk" ] || [ ! -e "$folder/usr/bin/mawk" ] || ln -s mawk "$folder/usr/bin/awk"
    mkdir -p "$folder"/{etc,root,var/tmp}
    chmod 1777 "$folder/tmp" "$folder/var/tmp"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$folder/etc/passwd"
    echo 'root:x:0:' >"$folder/etc/group"
}

# run_in_root FOLDER DIR[:DIR...] COMMAND...: runs COMMAND inside FOLDER, in the first DIR; every DIR
# is there at the same path as outside. The mounts belong to a namespace of their own and vanish
# with it. COMMAND takes the place of this function's processes, so that a signal reaches it.
run_in_root() {
    local folder=$1 binds=$2 how=(unshare --mount)
    shift 2
    # Without root a user namespace does as well, and leaves the files to their owner.
    [ "$(id -u)" = 0 ] || how=(unshare --map-root-user --mount)
    # shellcheck disable=SC2016
    "${how[@]}" /bin/sh -c '
        set -e
        folder=$1 binds=$2
        shift 2
        mount --rbind /proc "$folder/proc"
        mount --rbind /dev "$folder/dev"
        IFS=:
        for d in $binds; do
            mkdir -p "$folder$d"
            mount --rbind "$d" "$folder$d"
        done
        unset IFS
        # Unlike chroot, it can also change the folder; the root need not have a shell for that.
        exec unshare --root="$folder" --wd="${binds%%:*}" "$@"
    ' sh "$folder" "$binds" "$@"
}
