# Stock Debian guest kernels and their headers, unpacked below the cache. Nothing is installed.
#
# A kernel is named SUITE[-backports][@SERIES[-oldest]][-generic|:FLAVOUR], for example bookworm,
# bookworm-backports, trixie-backports-generic, bookworm:rt-amd64, trixie-backports@6.19 or
# bookworm-backports@6.12-oldest. FLAVOUR is cloud-amd64 unless said, and -generic is the one for real
# machines, amd64. SERIES is the newest kernel of that series which the suite has, and SERIES-oldest is
# its oldest one. SERIES may be a whole version, such as 6.12.43, as long as the suite has it. Older
# kernels may have no headers, and no modules can be built then. selfbuilt-VARIANT is one that
# selfbuilt.sh builds. Each lives in $CACHE/kernels/NAME:
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

# suite_series SUITE[-backports]: every series of kernels that the suite has, such as 6.12, ascending.
suite_series() {
    apt_tree "${1%-backports}"
    in_tree "${1%-backports}" apt-cache pkgnames linux-image- |
        sed -n 's/^linux-image-\([0-9]*\.[0-9]*\)[.+].*-cloud-amd64$/\1/p' | sort -Vu
}

# series_packages SUITE PREFIX SERIES FLAVOUR: the packages of that series, such as
# linux-image-6.19.14+deb13-amd64, oldest first. Nothing if there is none. The names of flavours contain
# each other. The meta package of a series, which has no version in its name, is left out.
series_packages() {
    in_tree "$1" apt-cache pkgnames "$2-$3" |
        { grep -Ex "$2-${3//./\\.}[.+][0-9a-z.+]*(-[0-9]+)?-$4" || true; } | sort -V
}

# guest_kernel NAME: fetches the newest kernel of that name and prints its folder.
guest_kernel() {
    local name=$1 pocket flavour suite dir series=''
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
    case "$pocket" in
    *@*)
        series=${pocket#*@}
        pocket=${pocket%@*}
        ;;
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
    local image headers image_package=linux-image-$flavour headers_package=linux-headers-$flavour
    if [ -n "$series" ]; then
        local packages
        mapfile -t packages < <(series_packages "$suite" linux-image "${series%-oldest}" "$flavour")
        case "$series" in
        *-oldest) image_package=${packages[0]:-} ;;
        *) image_package=${packages[-1]:-} ;;
        esac
        [ -n "$image_package" ] || die "Debian $suite has no kernel of the series $series for $flavour"
        headers_package=${image_package/image/headers}
    fi
    mapfile -t image < <(kernel_closure "$suite" "$pocket" "$image_package" 'image|binary|modules')
    mapfile -t headers < <(kernel_closure "$suite" "$pocket" "$headers_package" 'headers|kbuild')
    [ ${#image[@]} -gt 0 ] || die "Debian $suite has no $image_package"
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
        # Of older series the mirror has no modules either.
        mkdir -p "$root/usr/lib/modules/$release"
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
