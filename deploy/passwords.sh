#!/usr/bin/env bash
# Makes a password for each user of deploy/users.conf: deploy/passwords.sh DIRECTORY
# DIRECTORY/<user>.password is for that user's processes (bus.password_file), DIRECTORY/passwords.conf for the broker.
set -euo pipefail
dir=${1:?usage: deploy/passwords.sh DIRECTORY}
umask 077
mkdir -p "$dir"
if [ -e "$dir/passwords.conf" ]; then
  echo "error: $dir/passwords.conf is there already; remove it to make new passwords" >&2
  exit 1
fi
for user in decode vision audio fuse llm client gateway operator; do
  password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  printf '%s\n' "$password" >"$dir/$user.password"
  printf 'PASSWORD_%s: "%s"\n' "${user^^}" "$password"
done >"$dir/passwords.conf.new"
mv "$dir/passwords.conf.new" "$dir/passwords.conf"
