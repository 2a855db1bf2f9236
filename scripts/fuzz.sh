#!/usr/bin/env bash
# Runs libFuzzer over every decoder, one after the other, FUZZ_SECONDS in all; fetches cargo-fuzz into .tools when there is
# none. What is found lies in fuzz/artifacts, and the run ends with an error. Says on stderr what it did.
#
#   scripts/fuzz.sh              every target
#   scripts/fuzz.sh TARGET...    only these
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

pinned=0.13.2
seconds=${FUZZ_SECONDS:-900}
# Sanitizers are not part of the stable toolchain's promises; this lets the one toolchain that the project is built with have them.
export RUSTC_BOOTSTRAP=1

main() {
    local target share found=0
    cd "$project_folder"
    [ $# -gt 0 ] || set -- telegram messenger signature standard_webhooks chat stored model_stream service_answer config template
    share=$((seconds / $#))
    [ "$share" -gt 0 ] || fail "FUZZ_SECONDS=$seconds is less than a second for each of $# targets"
    cargo_fuzz
    # The versions that the program itself is built with.
    cp Cargo.lock fuzz/Cargo.lock
    cargo fuzz build --release >&2
    for target in "$@"; do
        gather "$target"
        say "$target: $share s"
        cargo fuzz run --release "$target" "fuzz/corpus/$target" -- \
            -max_total_time="$share" -max_len=16384 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 >&2 || found=1
    done
    [ "$found" = 0 ] || fail "something was found: see fuzz/artifacts" "cargo fuzz run TARGET FILE shows it again"
}

# cargo-fuzz of PATH, else its own copy.
cargo_fuzz() {
    export PATH="$tools_folder/cargo-fuzz/bin:$PATH"
    if ! cargo fuzz --version >/dev/null 2>&1; then
        say "cargo: installing cargo-fuzz $pinned into $tools_folder/cargo-fuzz"
        cargo install --locked --quiet --root "$tools_folder/cargo-fuzz" --version "$pinned" cargo-fuzz >&2
    fi
}

# gather TARGET: what the tests have for it is where it begins.
gather() {
    local corpus="fuzz/corpus/$1" seeds="fuzz/seeds/$1"
    mkdir -p "$corpus"
    case $1 in
        telegram | messenger) find "tests/fixtures/$1" -name '*.json' -exec cp {} "$corpus/" \; ;;
        config) find deploy -name '*.toml' -exec cp {} "$corpus/" \; ;;
    esac
    if [ -d "$seeds" ]; then cp "$seeds"/* "$corpus/"; fi
}

main "$@"
