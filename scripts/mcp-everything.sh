#!/usr/bin/env bash
# Prints the path of the script of an MCP server that exercises the whole protocol (npm: @modelcontextprotocol/server-everything),
# to be run with node; finds one, else installs it into .tools. Says on stderr what it did. Changes nothing outside the
# project's folder, unless there is no Node.js: then it asks apt for one, which needs root.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# What the package's own dependencies ask for.
minimum=18.0
package=@modelcontextprotocol/server-everything
pinned=2026.8.31
folder="$tools_folder/mcp-everything"
script="$folder/node_modules/$package/dist/index.js"

main() {
    scratch_folder
    if [ -n "${TURNWISE_MCP_EVERYTHING:-}" ]; then
        # A server that somebody named is never quietly replaced by another.
        [ -f "$TURNWISE_MCP_EVERYTHING" ] || fail "TURNWISE_MCP_EVERYTHING names no file: $TURNWISE_MCP_EVERYTHING"
        echo "$TURNWISE_MCP_EVERYTHING"
        return
    fi
    node_is_new_enough || install_node
    if [ "$(installed)" != "$pinned" ]; then
        install_server
    fi
    say "$script is $package $pinned, run by node $(node_version)"
    echo "$script"
}

node_version() { node --version 2>/dev/null | sed 's/^v//'; }

node_is_new_enough() { version_at_least "$(node_version || true)" "$minimum" && command -v npm >/dev/null; }

install_node() {
    local sudo=()
    command -v apt-get >/dev/null || fail "no Node.js $minimum or newer with npm" "install it yourself and put it on PATH"
    [ "$(id -u)" -eq 0 ] || sudo=(sudo --non-interactive)
    say "no Node.js $minimum or newer with npm: asking apt for it"
    { "${sudo[@]}" apt-get update --quiet --quiet && "${sudo[@]}" apt-get install --quiet --quiet --yes nodejs npm; } >&2 ||
        fail "apt could not install Node.js" "install Node.js $minimum or newer with npm, and put it on PATH"
    node_is_new_enough || fail "apt's Node.js is $(node_version), too old" "install $minimum or newer and put it on PATH"
}

installed() {
    [ -f "$script" ] && node -p 'require(process.argv[1]).version' "$(dirname "$(dirname "$script")")/package.json" || true
}

# Into the scratch folder first: the server appears whole or not at all, also when two scripts run at once.
install_server() {
    say "npm: fetching $package $pinned"
    npm install --prefix "$scratch" --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error \
        "$package@$pinned" >&2 || fail "npm could not fetch $package" "is its registry reachable? see \`npm config get registry\`"
    mkdir -p "$tools_folder"
    rm -rf "$folder.$$"
    mkdir "$folder.$$"
    cp -R "$scratch/node_modules" "$folder.$$/"
    rm -rf "$folder"
    mv "$folder.$$" "$folder"
}

main "$@"
