# Shared by the scripts in this folder: messages, the cache, and Debian packages taken from
# this machine's own mirror without touching this machine's package sources.
#
# Source it; do not run it.

set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/libleak
# A cargo target folder inside the checkout, so that a clean clone is a clean build. Absolute, since
# scripts change folders.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$TOP/target}")
export CARGO_TARGET_DIR
mkdir -p "$CACHE"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# as_root COMMAND...: runs it as root, through sudo where we are not.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Packages installed with the ordinary apt: need_packages PACKAGE...
need_packages() {
    local missing=() p
    for p in "$@"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    say "installing ${missing[*]}"
    as_root apt-get update -qq || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install ${missing[*]}; install them by hand and run this again"
}

# The mirrors this machine's apt is configured for: `main_mirror` and `security_mirror`.
apt_site() {
    local wanted=$1
    apt-get indextargets --format '$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -F'|' -v w="$wanted" '$1 == w { print $2; exit }'
}

# apt_has ADDRESS: does a mirror have this folder of dists/? Asked as apt itself would ask.
apt_has() {
    local file status=0
    file=$(mktemp)
    /usr/lib/apt/apt-helper -qq download-file "$1/InRelease" "$file" >/dev/null 2>&1 || status=$?
    rm -f "$file"
    return "$status"
}

# apt_tree SUITE: a private apt for one Debian release, with lists of its own below the cache.
# SUITE is a codename with its security and backports pockets, e.g. bookworm, trixie; the backports of
# a release that is no longer cared for leave the mirrors before the release itself does. Refreshed
# once a day. The environment variable APT_CONFIG selects it.
apt_tree() {
    local suite=$1 tree=$CACHE/apt/$1 main security
    if [ -n "$(find "$tree/fresh" -mtime -1 2>/dev/null)" ]; then return 0; fi
    main=$(apt_site Debian)
    security=$(apt_site Debian-Security)
    if [ -z "$main" ]; then
        # No index was fetched yet (a machine that is new): fetch and look again.
        as_root apt-get update -qq || true
        main=$(apt_site Debian)
        security=$(apt_site Debian-Security)
    fi
    [ -n "$main" ] || die "this machine's apt names no Debian mirror; add one to /etc/apt/sources.list"
    mkdir -p "$tree"/{lists/partial,archives/partial,parts,state}
    : >"$tree/status"
    {
        echo "deb $main $suite main"
        if apt_has "${main%/}/dists/$suite-backports"; then echo "deb $main $suite-backports main"; fi
        [ -z "$security" ] || echo "deb $security $suite-security main"
    } >"$tree/sources.list"
    cat >"$tree/apt.conf" <<CONF
Dir::Etc::SourceList "$tree/sources.list";
Dir::Etc::SourceParts "$tree/parts";
Dir::State::Lists "$tree/lists";
Dir::State "$tree/state";
Dir::State::status "$tree/status";
Dir::Cache "$tree";
Dir::Cache::Archives "$tree/archives";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Retries "3";
CONF
    say "reading the package lists of Debian $suite"
    APT_CONFIG=$tree/apt.conf apt-get update -qq ||
        { [ -e "$tree/fresh" ] && say "could not refresh the lists of $suite; using the old ones"; } ||
        die "could not read the package lists of Debian $suite"
    touch "$tree/fresh"
}

# in_tree SUITE COMMAND...: an apt command in the private tree.
in_tree() {
    local suite=$1
    shift
    APT_CONFIG=$CACHE/apt/$suite/apt.conf "$@"
}

# fetch_packages SUITE FOLDER PACKAGE[=VERSION]...: downloads and unpacks packages (without their
# dependencies) into FOLDER. Nothing is installed.
fetch_packages() {
    local suite=$1 folder=$2 work
    shift 2
    work=$(mktemp -d "$CACHE/fetch.XXXXXX")
    mkdir -p "$folder"
    (cd "$work" && in_tree "$suite" apt-get download -qq "$@" >/dev/null) ||
        die "could not download $* from Debian $suite"
    local deb
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$folder"; done
    rm -rf "$work"
}

# fetch_root SUITE FOLDER PACKAGE[/POCKET]...: as fetch_packages, with everything they depend on:
# a folder to chroot into. Maintainer scripts are not run.
fetch_root() {
    local suite=$1 folder=$2 deb d
    shift 2
    rm -rf "$folder.new"
    mkdir -p "$folder.new"/usr/{bin,sbin,lib,lib64} "$folder.new"/{proc,dev,sys,tmp,work}
    for d in bin sbin lib lib64; do ln -s "usr/$d" "$folder.new/$d"; done
    in_tree "$suite" apt-get install -qq -y --download-only "$@" >/dev/null ||
        die "could not download $* from Debian $suite"
    for deb in "$CACHE/apt/$suite"/archives/*.deb; do dpkg-deb -x "$deb" "$folder.new"; done
    rm -f "$CACHE/apt/$suite"/archives/*.deb
    rm -rf "$folder"
    mv "$folder.new" "$folder"
}
