#!/usr/bin/env bash
# Prints the paths of a Chromium and of its WebDriver (chromedriver), a line each, which the tests look at the chat widget with.
# Finds them, else has apt install Debian's packages, which needs root, or sudo without a password. Says on stderr what it did.
# Starts no browser but to ask for its version.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# The first that names parts of a shadow tree to a driver, and knows light-dark() in styles.
minimum=123.0

main() {
    local found
    found=$(from_environment || from_path || from_apt) ||
        fail "no Chromium $minimum or newer with chromedriver could be found or installed" \
            "install both yourself and put them on PATH, or name them in TURNWISE_CHROMIUM and TURNWISE_CHROMEDRIVER"
    say "using $(echo "$found" | paste -s -d' ' -)"
    echo "$found"
}

# usable CHROMIUM DRIVER: prints both when they run here and are new enough.
usable() {
    local binary version
    for binary in "$1" "$2"; do
        version=$("$binary" --version 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1) || version=""
        version_at_least "${version:-0}" "$minimum" && continue
        say "$binary is ${version:-not a Chromium that runs here}; $minimum or newer is needed"
        return 1
    done
    printf '%s\n%s\n' "$1" "$2"
}

# A program that somebody named is never quietly replaced by another.
from_environment() {
    [ -n "${TURNWISE_CHROMIUM:-}" ] && [ -n "${TURNWISE_CHROMEDRIVER:-}" ] || return 1
    usable "$TURNWISE_CHROMIUM" "$TURNWISE_CHROMEDRIVER" ||
        fail "TURNWISE_CHROMIUM or TURNWISE_CHROMEDRIVER names an unusable program"
}

from_path() {
    local browser driver
    driver=$(command -v chromedriver) || return 1
    for browser in chromium chromium-browser google-chrome; do
        browser=$(command -v "$browser") && usable "$browser" "$driver" && return
    done
    return 1
}

from_apt() {
    local as_root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "apt: installing chromium and chromium-driver"
    ${as_root[@]+"${as_root[@]}"} sh -eu -c '
        export DEBIAN_FRONTEND=noninteractive
        install() { apt-get --quiet --quiet --no-install-recommends --yes install chromium chromium-driver; }
        install || { apt-get --quiet --quiet update && install; }
    ' >&2 || return 1
    from_path
}

main "$@"
