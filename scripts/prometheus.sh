#!/usr/bin/env bash
# Prints the folder that holds prometheus and promtool; finds them, else takes them out of Debian's package into .tools. Says on
# stderr what it did. Needs no root, installs nothing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# `promtool check rules --lint-fatal` came with 2.33; Debian 12 has 2.42.
minimum=2.33
target="$tools_folder/prometheus"

main() {
    local on_path found
    scratch_folder
    on_path=$(command -v promtool || true)
    # What somebody named is never quietly replaced by another.
    if [ -n "${TURNWISE_PROMETHEUS:-}" ]; then
        found=$(usable "$TURNWISE_PROMETHEUS") || fail "TURNWISE_PROMETHEUS names a folder without a usable prometheus and promtool"
    elif found=$(usable "$(dirname "${on_path:-/nowhere/promtool}")" || usable "$target" || from_apt); then
        :
    else
        fail "no prometheus $minimum or newer could be found or fetched" \
            "install Debian's package prometheus, or name the folder of prometheus and promtool in TURNWISE_PROMETHEUS"
    fi
    say "$found holds $("$found/promtool" --version 2>&1 | head -n 1)"
    echo "$found"
}

# usable FOLDER: prints it when both programs run here and are new enough.
usable() {
    local version
    [ -x "$1/prometheus" ] && [ -x "$1/promtool" ] || return 1
    version=$("$1/promtool" --version 2>&1 | sed -n 's/^promtool, version \([0-9.]*\).*/\1/p') || version=""
    version_at_least "${version:-0}" "$minimum" || { say "$1 has version ${version:-unknown}; $minimum or newer is needed"; return 1; }
    echo "$1"
}

from_apt() {
    local folder
    folder=$(package_content prometheus) || return 1
    place "$folder/usr/bin/prometheus" "$target/prometheus"
    place "$folder/usr/bin/promtool" "$target/promtool"
    usable "$target"
}

main "$@"
