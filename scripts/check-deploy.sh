#!/usr/bin/env bash
# Judges everything in deploy/ with the validators of its own kind. What is needed is found or fetched into .tools; what cannot be
# had is named at the end as NOT CHECKED. Refuses to end well when something is wrong; a validator that is missing does not count.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

deploy="$project_folder/deploy"
python_tools="$tools_folder/validators"
# What systemd-analyze says a service may be exposed to, of 100.
exposure_max=15
failed=()
unchecked=()

main() {
    scratch_folder
    export scratch
    certificates
    prometheus
    nats
    systemd
    python_validators
    compose
    local name
    for name in ${unchecked[@]+"${unchecked[@]}"}; do say "NOT CHECKED: $name"; done
    [ ${#failed[@]} -eq 0 ] || fail "deploy/: $(IFS=,; echo "${failed[*]}")"
    say "deploy/ is good${unchecked[*]:+, as far as it was checked}"
}

# check NAME COMMAND...: says how it went; what the command said only when it failed.
check() {
    local name=$1 said
    shift
    if said=$("$@" 2>&1); then
        say "good: $name"
    else
        printf '%s\n' "$said" >&2
        say "BAD: $name"
        failed+=("$name")
    fi
}

skip() { unchecked+=("$1 ($2)"); }

certificates() {
    has_certificates=""
    if command -v openssl >/dev/null; then
        check "the script for certificates" "$deploy/nats/certificates.sh" "$scratch/tls" && has_certificates=yes
    else
        skip "nats.conf and the script for certificates" "openssl is not on this machine"
    fi
}

prometheus() {
    local programs
    if ! programs=$("$project_folder/scripts/prometheus.sh"); then
        skip "Prometheus's configuration, rules and their tests" "no promtool, see above"
        return
    fi
    check "Prometheus's configuration" "$programs/promtool" check config --lint=all --lint-fatal "$deploy/prometheus/prometheus.yml"
    check "alerting rules" "$programs/promtool" check rules --lint=all --lint-fatal "$deploy/prometheus/rules.yml"
    check "the rules' tests" "$programs/promtool" test rules "$deploy/prometheus/rules_test.yml"
}

nats() {
    local server role
    [ -n "$has_certificates" ] || return 0
    if ! server=$("$project_folder/scripts/nats-server.sh"); then
        skip "nats.conf" "no nats-server, see above"
        return
    fi
    sed -e "s#/etc/nats/tls#$scratch/tls#" -e "s#\"/data\"#\"$scratch/data\"#" "$deploy/nats/nats.conf" >"$scratch/nats.conf"
    for role in INGRESS WORKER EGRESS ALL AUDIT ADMIN; do
        export "TURNWISE_NATS_${role}_PASSWORD=stand-in"
    done
    check "nats.conf" "$server" -t -c "$scratch/nats.conf"
}

systemd() {
    if ! command -v systemd-analyze >/dev/null; then
        skip "the systemd unit" "systemd-analyze is not on this machine"
        return
    fi
    # Its program is not installed here.
    sed 's#/usr/local/bin/turnwise#/bin/true#' "$deploy/systemd/turnwise.service" >"$scratch/turnwise.service"
    check "the systemd unit" verify_unit "$scratch/turnwise.service"
    check "the systemd unit's hardening" systemd-analyze security --offline=true --threshold="$exposure_max" "$scratch/turnwise.service"
}

# systemd-analyze tells what is wrong by printing, not by its status.
verify_unit() {
    local said
    said=$(systemd-analyze verify "$1" 2>&1) || { echo "$said"; return 1; }
    [ -z "$said" ] || { echo "$said"; return 1; }
}

python_validators() {
    if ! fetch_python_validators; then
        skip "Dockerfile, YAML and Kubernetes manifests" "the validators could not be fetched, see above"
        return
    fi
    check "the Dockerfile" "$python_tools/bin/hadolint" "$deploy/Dockerfile"
    check "YAML" "$python_tools/bin/yamllint" --strict --config-file "$project_folder/.yamllint.yml" "$deploy"
    kubernetes
}

kubernetes() {
    if command -v kustomize >/dev/null; then
        check "the Kustomize base" build_base kustomize build
    elif command -v kubectl >/dev/null; then
        check "the Kustomize base" build_base kubectl kustomize
    else
        skip "the Kustomize base as a whole" "neither kustomize nor kubectl is on this machine"
        # Its parts are whole manifests.
        cat "$deploy"/kustomize/base/{deployment,service,serviceaccount,poddisruptionbudget,networkpolicy}.yaml >"$scratch/base.yaml"
    fi
    [ ! -s "$scratch/base.yaml" ] ||
        check "Kubernetes manifests" "$python_tools/bin/kubernetes-validate" --strict "$scratch/base.yaml"
}

build_base() { "$@" "$deploy/kustomize/base" >"$scratch/base.yaml"; }

fetch_python_validators() {
    local list="$project_folder/scripts/validators.txt"
    cmp --silent "$list" "$python_tools/validators.txt" && return
    python3 -m pip --version >/dev/null 2>&1 || { say "pip: not on this machine"; return 1; }
    say "pip: fetching what judges Dockerfile, YAML and Kubernetes manifests into $python_tools"
    rm -rf "$python_tools"
    python3 -m venv --without-pip "$python_tools" >&2 || return 1
    python3 -m pip --python "$python_tools/bin/python" install --quiet --disable-pip-version-check --no-deps \
        --requirement "$list" >&2 || return 1
    cp "$list" "$python_tools/validators.txt"
}

compose() {
    local command=()
    if docker compose version >/dev/null 2>&1; then
        command=(docker compose)
    elif command -v docker-compose >/dev/null; then
        command=(docker-compose)
    else
        skip "compose.yaml" "neither docker compose nor docker-compose is on this machine"
        return
    fi
    check "compose.yaml" "${command[@]}" --file "$deploy/compose.yaml" --env-file "$deploy/compose/example.env" \
        --profile observability config --quiet
}

main "$@"
