#!/usr/bin/env bash
# Makes what compose.yaml hands to its containers: a password for each process, and the token of the gateway, in
# deploy/compose/secrets. The containers run as user 10001, so this needs root where you are another one.
set -euo pipefail
cd "$(dirname "$0")"
../passwords.sh secrets
(umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >secrets/token)
mkdir -p media
if [ "$(id -u)" = 0 ]; then
  chown -R 10001:10001 secrets
elif [ "$(id -u)" != 10001 ]; then
  sudo chown -R 10001:10001 secrets
fi
echo "the gateway's token: $PWD/secrets/token" >&2
