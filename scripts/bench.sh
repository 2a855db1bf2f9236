#!/usr/bin/env bash
# Measures Turnwise under load: for each way of syncing the stream and each database, a deployment of its own on loopback and
# in a temporary folder, `turnwise bench` against it, and the report as Markdown on stdout. What it does is said on stderr.
# Everything it started ends with it, also after Ctrl-C.
#
#   SHAPES="s1 s1k s3 ..."                    see `turnwise bench --help`
#   DATABASES="sqlite postgres"
#   SYNCS="interval always"                  nats-server: fsync every two minutes, or before each acknowledgement
#   BENCH_ARGS=""                            more words for `turnwise bench`
#   TURNWISE=target/release/turnwise         the binary; built if the variable is not set
#   LIMIT_SECONDS=1800                       of one deployment's run
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

shapes=${SHAPES:-s1 s1k s2-5k s3 overhead takeover history growth idle s2-50k}
databases=${DATABASES:-sqlite postgres}
syncs=${SYNCS:-interval always}
limit_seconds=${LIMIT_SECONDS:-1800}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/turnwise-bench.XXXXXX")
started=()

main() {
    local sync database
    # 5,000 conversations at once are some thousand sockets on either side.
    ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
    trap finish EXIT
    trap 'exit 130' INT TERM
    binary=${TURNWISE:-}
    if [ -z "$binary" ]; then
        (cd "$project_folder" && "${CARGO:-cargo}" build --release --locked) >&2
        binary=$project_folder/target/release/turnwise
    fi
    nats_server=$("$project_folder/scripts/nats-server.sh")
    case " $databases " in *" postgres "*) postgres_programs=$("$project_folder/scripts/postgres.sh") ;; esac
    echo "Measured on $(date -u +%Y-%m-%d) at commit $(commit) with"
    echo "\`make bench SHAPES=\"$shapes\" DATABASES=\"$databases\" SYNCS=\"$syncs\"${BENCH_ARGS:+ BENCH_ARGS=\"$BENCH_ARGS\"}\`;"
    echo "$("$nats_server" --version | sed 's/: / /')${postgres_programs:+, $("$postgres_programs/postgres" --version)}."
    for sync in $syncs; do
        for database in $databases; do
            deployment "$sync" "$database"
        done
    done
}

commit() {
    local hash changed
    hash=$(git -C "$project_folder" rev-parse --short HEAD 2>/dev/null) || { echo unknown; return; }
    changed=$(git -C "$project_folder" status --porcelain 2>/dev/null) || true
    echo "$hash${changed:+ (with changes)}"
}

# deployment SYNC DATABASE: one section of the report.
deployment() {
    local folder="$scratch/$2-$1" failed=0
    mkdir -p "$folder"
    chmod 755 "$scratch" "$folder"
    started=()
    start_nats "$1" "$folder"
    case $2 in
        sqlite) database_url="sqlite://turnwise.db" ;;
        postgres) start_postgres "$folder" ;;
        *) fail "unknown database \"$2\"" "DATABASES knows sqlite and postgres" ;;
    esac
    http_port=$(free_port)
    api_port=$(free_port)
    write_configuration "$folder"
    start_turnwise "$folder"
    printf '\n### %s, stream synced %s\n\n' "$2" "$1"
    # The words are meant to be split.
    # shellcheck disable=SC2086
    timeout --foreground "$limit_seconds" "$binary" bench --config "$folder/turnwise.toml" --shape "${shapes// /,}" \
        ${BENCH_ARGS:-} || failed=$?
    [ "$failed" -le 1 ] || { tail -n 20 "$folder/turnwise.log" >&2; fail "turnwise bench ended with $failed"; }
    [ "$failed" = 0 ] || any_failed=1
    stop_turnwise
    start_turnwise "$folder"
    echo "Start to ready on the store that this run left: ${ready_ms} ms."
    audit "$folder"
    stop_all
    rm -rf "$folder"
}

start_nats() {
    local interval=2m
    [ "$1" = interval ] || interval=always
    nats_port=$(free_port)
    cat >"$2/nats.conf" <<CONF
listen: "127.0.0.1:$nats_port"
jetstream { store_dir: "$2/nats", sync_interval: $interval }
CONF
    "$nats_server" -c "$2/nats.conf" >"$2/nats.log" 2>&1 &
    started+=($!)
    wait_for "nats-server" "$2/nats.log" port_open "$nats_port"
}

# As its own account: PostgreSQL refuses to run as root. Durability is PostgreSQL's default: fsync on, synchronous commit.
start_postgres() {
    local folder="$1/postgres" as=()
    mkdir -p "$folder"
    if [ "$(id -u)" = 0 ]; then
        local account=nobody
        id -u postgres >/dev/null 2>&1 && account=postgres
        chown "$account" "$folder"
        as=(setpriv "--reuid=$account" "--regid=$(id -g "$account")" --clear-groups --)
    fi
    chmod 700 "$folder"
    postgres_port=$(free_port)
    (
        cd "$folder"
        ${as[@]+"${as[@]}"} "$postgres_programs/initdb" --auth=trust --username=postgres --encoding=UTF8 --locale=C \
            --no-instructions --pgdata "$folder/data" >"$1/postgres.log" 2>&1 || fail "initdb failed: $(cat "$1/postgres.log")"
        exec ${as[@]+"${as[@]}"} "$postgres_programs/postgres" -D "$folder/data" -c listen_addresses=127.0.0.1 \
            -c "port=$postgres_port" -c "unix_socket_directories=$folder" >>"$1/postgres.log" 2>&1
    ) &
    started+=($!)
    wait_for "PostgreSQL" "$1/postgres.log" port_open "$postgres_port"
    database_url="postgres://postgres@127.0.0.1:$postgres_port/postgres"
}

write_configuration() {
    cat >"$1/script.toml" <<'SCRIPT'
[[rule]]
pattern = "^50ms "
reply = "$text"
delay = "50ms"

[[rule]]
pattern = "^5000ms "
reply = "$text"
delay = "5s"

[[rule]]
reply = "$text"
SCRIPT
    cat >"$1/turnwise.toml" <<CONFIG
[http]
listen = "127.0.0.1:$http_port"
[nats]
url = "nats://127.0.0.1:$nats_port"
[database]
url = "$database_url"
[worker]
max_turns = 100000
[bots.bench]
channel = "telegram"
responder = "bench"
token = "1:bench"
webhook_secret = "bench"
api_base = "http://127.0.0.1:$api_port"
[responders.bench]
kind = "script"
file = "script.toml"
CONFIG
}

# start_turnwise FOLDER: sets ready_ms.
start_turnwise() {
    local begun
    begun=$(now_ms)
    RUST_LOG=${RUST_LOG:-warn} "$binary" serve --config "$1/turnwise.toml" >>"$1/turnwise.log" 2>&1 &
    turnwise=$!
    started+=("$turnwise")
    wait_for "turnwise" "$1/turnwise.log" is_ready "$http_port"
    ready_ms=$(($(now_ms) - begun))
}

stop_turnwise() {
    kill -TERM "$turnwise" 2>/dev/null || true
    wait "$turnwise" 2>/dev/null || true
}

# The stream against the ledger: what bench saw from outside must also be what the database says.
audit() {
    local report
    if report=$("$binary" audit --config "$1/turnwise.toml" 2>/dev/null); then
        echo "The audit is clean."
    else
        any_failed=1
        printf '**The audit is not clean:**\n\n```\n%s\n```\n' "$report"
    fi
}

# The last started first: Turnwise before what it needs.
stop_all() {
    local index
    for ((index = ${#started[@]} - 1; index >= 0; index--)); do
        kill -TERM "${started[index]}" 2>/dev/null || true
        # PostgreSQL's word for at once is SIGINT; after SIGTERM it waits for its clients, which are gone by now.
        wait "${started[index]}" 2>/dev/null || true
    done
    started=()
}

any_failed=0
finish() {
    local code=$?
    stop_all
    rm -rf "$scratch"
    [ "$code" != 0 ] || code=$any_failed
    exit "$code"
}

# wait_for NAME LOG COMMAND...
wait_for() {
    local name=$1 log=$2 tries=3000
    shift 2
    until "$@"; do
        kill -0 "${started[-1]}" 2>/dev/null || fail "$name ended before it was ready: $(tail -n 5 "$log")"
        [ $((tries -= 1)) -gt 0 ] || fail "$name is not ready: $(tail -n 5 "$log")"
        sleep 0.01
    done
}

port_open() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

is_ready() (
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    printf 'GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n' >&3
    read -r line <&3 && [[ $line == *" 200 "* ]]
)

# Below the range from which systems take the local ends of outgoing connections.
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); do
        port_open "$port" || { echo "$port"; return; }
    done
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

main "$@"
