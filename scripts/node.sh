#!/usr/bin/env bash
# Prints the path of a Node.js that runs TypeScript as it is; finds one, else fetches one into .tools. Says on stderr what it
# did. Needs no root, changes nothing outside the project's folder.
#
#   scripts/node.sh              environment, PATH, .tools, then pip
#   scripts/node.sh WAY...       only these, in this order: environment path tools pip
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# From this one on, types are stripped without being asked for.
minimum=22.18

main() {
    local way
    scratch_folder
    [ $# -gt 0 ] || set -- environment path tools pip
    for way in "$@"; do
        case $way in environment | path | tools | pip) ;; *) fail "unknown way \"$way\"" ;; esac
        if found=$("from_$way"); then
            say "$way: $found is Node.js $("$found" --version)"
            echo "$found"
            return
        fi
        # A program that somebody named is never quietly replaced by another.
        [ "$way" != environment ] || [ -z "${TURNWISE_NODE:-}" ] ||
            fail "TURNWISE_NODE names an unusable program: $TURNWISE_NODE"
    done
    fail "no Node.js $minimum or newer could be found or fetched" \
        "install Node.js yourself and put it on PATH, or name it in TURNWISE_NODE"
}

# usable BINARY: prints it when it runs here and is new enough.
usable() {
    local version
    version=$("$1" --version 2>/dev/null) || version=""
    version_at_least "${version#v}" "$minimum" && echo "$1" && return
    say "$1 is ${version:-not a Node.js that runs here}; $minimum or newer is needed"
    return 1
}

from_environment() {
    [ -n "${TURNWISE_NODE:-}" ] || return 1
    usable "$TURNWISE_NODE"
}

from_path() {
    local binary
    binary=$(command -v node) || return 1
    usable "$binary"
}

from_tools() {
    [ -x "$node_of_tools" ] || return 1
    usable "$node_of_tools"
}

from_pip() {
    fetch_node && from_tools
}

main "$@"
