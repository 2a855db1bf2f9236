#!/usr/bin/env bash
# Makes a certificate authority and a server certificate for NATS with openssl, for a trial or a private network:
#
#   deploy/nats/certificates.sh FOLDER [NAME...]
#
# FOLDER gets ca.pem, which clients are given, server.pem and server.key. NAME: host names and addresses of the servers; by default
# those of compose.yaml. Refuses to overwrite. The authority's key is thrown away: another server needs another run.
set -euo pipefail

folder=${1:?usage: certificates.sh FOLDER [NAME...]}
shift
[ $# -gt 0 ] || set -- nats-1 nats-2 nats-3 localhost 127.0.0.1
[ ! -e "$folder/server.pem" ] || { echo "error: $folder/server.pem exists" >&2; exit 1; }

names=""
for name in "$@"; do
    case $name in
        *[!0-9.]*) names="$names,DNS:$name" ;;
        *) names="$names,IP:$name" ;;
    esac
done

umask 077
mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=Turnwise NATS CA" \
    -keyout "$scratch/ca.key" -out "$folder/ca.pem" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
    -keyout "$folder/server.key" -out "$scratch/server.csr" 2>/dev/null
printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n' "${names#,}" >"$scratch/extensions"
openssl x509 -req -in "$scratch/server.csr" -CA "$folder/ca.pem" -CAkey "$scratch/ca.key" -CAcreateserial -days 825 \
    -extfile "$scratch/extensions" -out "$folder/server.pem" 2>/dev/null
chmod 644 "$folder/ca.pem" "$folder/server.pem"
echo "$folder: ca.pem, server.pem, server.key for $*" >&2
