#!/usr/bin/env bash
# Prints the path of a program that runs aimock, an independent imitation of OpenAI's and Anthropic's APIs which the tests
# talk to; finds one, else installs the npm package @copilotkit/aimock into .tools, with a Node.js that is found or fetched.
# Says on stderr what it did. Starts no server.
#
#   scripts/aimock.sh                Node.js: PATH, .tools, pip, then apt (root, or sudo without a password)
#   scripts/aimock.sh WAY...         only these, in this order: path tools pip apt
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

pinned=1.43.0
# As npm records it; the package has no dependencies.
integrity=sha512-V8D8cjSMtAR4rHaD2ulp3DR/ZguXQjDNOqwKDNvjb/OJL/KR1I0SDf5xpRCd+TYKjhmf9fM8Xpg3QBKPmV9Kmw==
# It imports zlib.crc32, which came with this.
node_minimum=20.15
target="$tools_folder/aimock"

main() {
    local way node
    scratch_folder
    if [ -n "${TURNWISE_AIMOCK:-}" ]; then
        "$TURNWISE_AIMOCK" --help >/dev/null 2>&1 || fail "TURNWISE_AIMOCK names an unusable program: $TURNWISE_AIMOCK"
        echo "$TURNWISE_AIMOCK"
        return
    fi
    if [ $# = 0 ] && installed; then return; fi
    [ $# -gt 0 ] || set -- path tools pip apt
    for way in "$@"; do
        case $way in path | tools | pip | apt) ;; *) fail "unknown way \"$way\"" ;; esac
        node=$("node_from_$way") || continue
        say "$way: $node is Node.js $("$node" --version)"
        if install_package "$node" && installed; then return; fi
    done
    fail "no Node.js $node_minimum or newer with npm could be found or fetched, or npm could not install aimock" \
        "install Node.js and npm, or name a program that runs aimock in TURNWISE_AIMOCK"
}

# Prints the program when it is there, is the pinned version, and runs.
installed() {
    grep -qs "\"version\": \"$pinned\"" "$target/node_modules/@copilotkit/aimock/package.json" || return 1
    "$target/aimock" --help >/dev/null 2>&1 || return 1
    say "$target/aimock is aimock $pinned"
    echo "$target/aimock"
}

# install_package NODE: in a scratch folder first, so that the target appears whole or not at all.
install_package() {
    local node=$1 folder="$scratch/aimock" npm
    npm=$(npm_of "$node") || { say "$node has no npm beside it"; return 1; }
    mkdir -p "$folder" "$tools_folder"
    say "npm: installing @copilotkit/aimock $pinned into $target"
    (cd "$folder" && "$node" "$npm" install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
        "@copilotkit/aimock@$pinned") >&2 || return 1
    grep -qF "\"$integrity\"" "$folder/node_modules/.package-lock.json" ||
        fail "npm installed another @copilotkit/aimock $pinned than the one that was checked" "look at $0"
    # The expansion is the wrapper's.
    # shellcheck disable=SC2016
    printf '#!/bin/sh\nexec "%s" "$(dirname "$0")/node_modules/@copilotkit/aimock/dist/cli.js" "$@"\n' \
        "$node" >"$folder/aimock"
    chmod 755 "$folder/aimock"
    put "$folder" "$target"
}

# npm_of NODE: the script of the npm that came with it, or of the one on PATH.
npm_of() {
    local beside
    beside="$(dirname "$(readlink -f "$1")")/../lib/node_modules/npm/bin/npm-cli.js"
    if [ -f "$beside" ]; then readlink -f "$beside"; else readlink -f "$(command -v npm)"; fi
}

# usable_node BINARY: prints it when it runs here and is new enough.
usable_node() {
    local version
    version=$("$1" --version 2>/dev/null) || version=""
    version_at_least "${version#v}" "$node_minimum" && echo "$1" && return
    say "$1 is ${version:-not a Node.js that runs here}; $node_minimum or newer is needed"
    return 1
}

node_from_path() {
    local binary
    binary=$(command -v node) || return 1
    usable_node "$binary"
}

node_from_tools() {
    [ -x "$node_of_tools" ] || return 1
    usable_node "$node_of_tools"
}

node_from_pip() {
    fetch_node && node_from_tools
}

# Only where the release's own candidate is new enough: Debian 12 has 18.
node_from_apt() {
    local candidate as_root=()
    command -v apt-get >/dev/null || return 1
    candidate=$(apt-cache policy nodejs 2>/dev/null | awk '$1 == "Candidate:" { print $2 }')
    case $candidate in "" | "(none)") say "apt: no nodejs in its lists"; return 1 ;; esac
    version_at_least "$candidate" "$node_minimum" || { say "apt: its candidate is $candidate, too old"; return 1; }
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "apt: installing nodejs and npm $candidate"
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get --quiet --quiet --no-install-recommends --yes install nodejs npm >&2 || return 1
    node_from_path
}

main "$@"
