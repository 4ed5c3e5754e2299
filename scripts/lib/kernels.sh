# Stock Debian guest kernels and their headers, unpacked below the cache. Nothing is installed.
#
# A kernel is named SUITE[-backports][-generic|:FLAVOUR], for example bookworm, bookworm-backports,
# trixie-backports-generic or bookworm:rt-amd64. FLAVOUR is cloud-amd64 unless said, and -generic is the
# one for real machines, amd64. selfbuilt-VARIANT is one that selfbuilt.sh builds. Each lives in $CACHE/kernels/NAME:
#   vmlinuz      the compressed kernel image
#   release      what uname -r prints
#   modules/     lib/modules/RELEASE
#   root/        headers and kbuild, as the packages lay them out below usr/

# kernel_closure SUITE POCKET PACKAGE FOLLOW: the packages that the meta package PACKAGE of POCKET stands
# for, as NAME=VERSION lines: itself and what it depends on among linux-(FOLLOW)-*.
kernel_closure() {
    local suite=$1 pocket=$2 package=$3 follow=$4
    local todo=("$package") seen=" " p version
    while [ ${#todo[@]} -gt 0 ]; do
        p=${todo[0]}
        todo=("${todo[@]:1}")
        case "$seen" in *" $p "*) continue ;; esac
        seen="$seen$p "
        version=$(in_tree "$suite" apt-cache -t "$pocket" policy "$p" | awk '/Candidate:/ { print $2 }')
        [ -n "$version" ] && [ "$version" != "(none)" ] || continue
        echo "$p=$version"
        mapfile -t -O ${#todo[@]} todo < <(
            in_tree "$suite" apt-cache show "$p=$version" | sed -n 's/^\(Pre-\)\?Depends: //p' | head -n 1 |
                tr ',|' '\n\n' | sed 's/^ *//; s/[ (:].*//' |
                grep -E "^linux-($follow)-" | grep -v -e '-unsigned$' || true
        )
    done
}

# guest_kernel NAME: fetches the newest kernel of that name and prints its folder.
guest_kernel() {
    local name=$1 pocket flavour suite dir
    case "$name" in
    selfbuilt-*)
        # shellcheck source=scripts/lib/selfbuilt.sh
        . "$TOP/scripts/lib/selfbuilt.sh"
        selfbuilt_kernel "$name"
        return
        ;;
    esac
    pocket=${name%%:*}
    pocket=${pocket%-generic}
    case "$name" in
    *:*) flavour=${name#*:} ;;
    *-generic) flavour=amd64 ;;
    *) flavour=cloud-amd64 ;;
    esac
    suite=${pocket%-backports}
    apt_tree "$suite"
    dir=$CACHE/kernels/${name/:/-}
    # Asking apt takes seconds, and the answer only changes with its lists.
    if [ "$dir/checked" -nt "$CACHE/apt/$suite/fresh" ]; then
        echo "$dir"
        return
    fi
    # A plain suite means its newest, which the security pocket may hold: no -t then.
    [ "$pocket" = "$suite" ] && pocket=now
    local image headers
    mapfile -t image < <(kernel_closure "$suite" "$pocket" "linux-image-$flavour" 'image|binary|modules')
    mapfile -t headers < <(kernel_closure "$suite" "$pocket" "linux-headers-$flavour" 'headers|kbuild')
    [ ${#image[@]} -gt 0 ] || die "Debian $suite has no linux-image-$flavour"
    if [ "$(cat "$dir/packages" 2>/dev/null)" != "$(printf '%s\n' "${image[@]}" "${headers[@]}")" ]; then
        say "fetching the kernel ${image[1]:-${image[0]}}"
        rm -rf "$dir.new"
        # Without the meta packages, which are empty: only the others have a version in their names.
        local wanted
        mapfile -t wanted < <(printf '%s\n' "${image[@]}" "${headers[@]}" | grep '^linux-[a-z]*-[0-9]')
        fetch_packages "$suite" "$dir.new/root" "${wanted[@]}"
        local root=$dir.new/root release vmlinuz
        # Older packages still use lib/ beside usr/lib/: merge them.
        if [ -d "$root/lib" ]; then mkdir -p "$root/usr/lib" && cp -al "$root/lib/." "$root/usr/lib/" && rm -rf "$root/lib"; fi
        vmlinuz=$(find "$root" -name 'vmlinuz*' -path '*/boot/*' -o -name vmlinuz -path '*/lib/modules/*' | head -n 1)
        [ -n "$vmlinuz" ] || die "no vmlinuz in ${image[*]}"
        case "$vmlinuz" in
        */boot/vmlinuz-*) release=${vmlinuz##*/vmlinuz-} ;;
        *) release=$(basename "$(dirname "$vmlinuz")") ;;
        esac
        cp "$vmlinuz" "$dir.new/vmlinuz"
        echo "$release" >"$dir.new/release"
        ln -s "root/usr/lib/modules/$release" "$dir.new/modules"
        # The headers' makefiles name their parts by absolute path, which is not where they are here.
        local h
        for h in "$root"/usr/src/linux-headers-*/Makefile; do
            [ -e "$h" ] && sed -i "s#/usr/src/#$dir/root/usr/src/#g" "$h"
        done
        for h in "$root"/usr/src/linux-headers-*/{scripts,tools}; do
            [ -L "$h" ] && ln -sfn "$dir/root/$(readlink "$h" | sed 's#^\(\.\./\)*##; s#^lib/#usr/lib/#; s#^/##')" "$h"
        done
        printf '%s\n' "${image[@]}" "${headers[@]}" >"$dir.new/packages"
        rm -rf "$dir"
        mv "$dir.new" "$dir"
    fi
    touch "$dir/checked"
    echo "$dir"
}
