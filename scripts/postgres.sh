#!/usr/bin/env bash
# Prints the folder of PostgreSQL's server programs (initdb, postgres, pg_ctl), which the tests start servers of their own
# from. Where there are none it installs Debian's package as root, or unpacks it privately into .tools as anybody else. Says
# on stderr what it did. Creates no cluster, starts no server.
#
#   scripts/postgres.sh              what is there, else install (root, or sudo without a password), else private
#   scripts/postgres.sh WAY...       only these, in this order: present install private
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# The oldest major version the tests are run on (Debian 12).
minimum=15
private="$tools_folder/postgresql"

main() {
    local way
    scratch_folder
    [ $# -gt 0 ] || set -- present install private
    for way in "$@"; do
        case $way in present | install | private) ;; *) fail "unknown way \"$way\"" ;; esac
        if found=$("from_$way"); then
            say "$way: $("$found/postgres" --version) in $found"
            echo "$found"
            return
        fi
    done
    fail "no PostgreSQL $minimum server programs could be found or fetched" \
        "install PostgreSQL's server and put the folder of initdb and postgres on PATH"
}

# usable FOLDER: prints it when its programs run here and are new enough.
usable() {
    local version
    [ -x "$1/initdb" ] && [ -x "$1/pg_ctl" ] || return 1
    version=$("$1/postgres" --version 2>/dev/null | awk '{ print $3 }') || version=""
    version_at_least "${version:-0}" "$minimum" && echo "$1" && return
    say "$1 has PostgreSQL ${version:-that does not run here}; $minimum or newer is needed"
    return 1
}

from_present() {
    local initdb folder
    if initdb=$(command -v initdb); then usable "$(dirname "$(readlink -f "$initdb")")" && return; fi
    # Newest first.
    for folder in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -rn); do
        usable "$folder" && return
    done
    if command -v brew >/dev/null; then
        for folder in "$(brew --prefix)"/opt/postgresql*/bin; do usable "$folder" && return; done
    fi
    usable "$private/bin"
}

from_install() {
    local as_root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "install: apt-get install postgresql"
    ${as_root[@]+"${as_root[@]}"} sh -eu -c '
        export DEBIAN_FRONTEND=noninteractive
        # Written before the package comes: it then makes no cluster, and so starts no server.
        mkdir -p /etc/postgresql-common
        [ -e /etc/postgresql-common/createcluster.conf ] ||
            echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
        apt-cache show postgresql >/dev/null 2>&1 || apt-get --quiet --quiet update
        install() {
            apt-get --quiet --quiet -o Dpkg::Options::=--force-confold install --yes --no-install-recommends postgresql
        }
        # A list that has aged names packages that are gone: fetch it once more.
        install || { apt-get --quiet --quiet update && install; }
    ' >&2 || return 1
    from_present
}

# The server and whatever libraries this machine lacks, unpacked into .tools; small wrappers tell the programs where those
# libraries are.
from_private() {
    local archives="$scratch/archives" server program
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    mkdir -p "$archives/partial" "$private/bin"
    say "private: fetching PostgreSQL into $private"
    apt-get -o Debug::NoLocking=1 -o "Dir::Cache::archives=$archives" -o APT::Sandbox::User= --quiet --quiet \
        --download-only --no-install-recommends --yes install postgresql >&2 || return 1
    for package in "$archives"/*.deb; do dpkg -x "$package" "$private" || return 1; done
    server=$(printf '%s\n' "$private"/usr/lib/postgresql/*/bin | sort -rn | sed -n 1p)
    for program in "$server"/*; do
        wrap "$program" "$private/bin/$(basename "$program")"
    done
    usable "$private/bin"
}

# wrap PROGRAM WRAPPER
wrap() {
    local libraries
    libraries=$(find "$private/usr/lib" -maxdepth 2 -name '*.so.*' -exec dirname {} + | sort -u | paste -s -d: -)
    # The expansion is the wrapper's.
    # shellcheck disable=SC2016
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec %s "$@"\n' \
        "'$libraries'" "'$1'" >"$2"
    chmod 755 "$2"
}

main "$@"
