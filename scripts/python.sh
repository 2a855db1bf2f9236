#!/usr/bin/env bash
# Prints the path of a Python; finds one, else has apt install Debian's, which needs root, or sudo without a password. Says on
# stderr what it did.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# The oldest that still gets fixes when this was written.
minimum=3.10

main() {
    local found
    found=$(from_environment || from_path || from_apt) ||
        fail "no Python $minimum or newer could be found or installed" "install python3 yourself and put it on PATH"
    say "$found is $("$found" --version)"
    echo "$found"
}

# usable BINARY: prints it when it runs here and is new enough.
usable() {
    local version
    version=$("$1" --version 2>/dev/null | awk '{ print $2 }') || version=""
    version_at_least "${version:-0}" "$minimum" && echo "$1" && return
    say "$1 is ${version:-not a Python that runs here}; $minimum or newer is needed"
    return 1
}

# A program that somebody named is never quietly replaced by another.
from_environment() {
    [ -n "${TURNWISE_PYTHON:-}" ] || return 1
    usable "$TURNWISE_PYTHON" || fail "TURNWISE_PYTHON names an unusable program: $TURNWISE_PYTHON"
}

from_path() {
    local binary
    binary=$(command -v python3) || return 1
    usable "$binary"
}

from_apt() {
    local as_root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "apt: installing python3"
    ${as_root[@]+"${as_root[@]}"} sh -eu -c '
        export DEBIAN_FRONTEND=noninteractive
        install() { apt-get --quiet --quiet --no-install-recommends --yes install python3; }
        install || { apt-get --quiet --quiet update && install; }
    ' >&2 || return 1
    from_path
}

main "$@"
