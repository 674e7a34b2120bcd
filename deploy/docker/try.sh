#!/usr/bin/env bash
# Builds the root of the `cpu` image without a container engine, in a clean Debian, and asks a question in it: what Dockerfile does,
# but for compiling. As root, with mmdebstrap: deploy/docker/try.sh VIDI DIRECTORY (the command that was built; a new directory)
# VIDI_NATS_SERVER names the broker, which is not in the image; APT_SOURCES a file of package sources, the host's if it has one.
set -euo pipefail
cd "$(dirname "$0")/../.."
vidi=${1:?usage: deploy/docker/try.sh VIDI DIRECTORY} root=${2:?usage: deploy/docker/try.sh VIDI DIRECTORY}
sources=${APT_SOURCES:-/etc/apt/sources.list.d/debian.sources}
[ -f "$sources" ] || sources=
[ ! -e "$root" ] || { echo "error: $root is there already" >&2; exit 1; }

mmdebstrap --quiet --variant=minbase bookworm "$root" $sources
install -D -t "$root/usr/local/lib/vidi" deploy/docker/packages.sh deploy/docker/healthy.sh
chroot "$root" /usr/local/lib/vidi/packages.sh run
chroot "$root" useradd --uid 10001 --no-create-home --home-dir /tmp vidi
chroot "$root" install -d -o vidi -g vidi /run/vidi /var/lib/vidi /var/lib/vidi/parked /var/cache/vidi /uploads
mkdir -p "$root/usr/local/share/vidi" "$root/media"
cp -r deploy/demo-model "$root/usr/local/share/vidi/"
install "$vidi" "$root/usr/local/bin/vidi"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
work=$(mktemp -d)
broker= pipeline=
ended() {
  for pid in $pipeline $broker; do kill "$pid" 2>/dev/null && wait "$pid" || true; done
  umount "$root/proc" "$root/dev"
  rm -rf "$work"
}
trap ended EXIT

inside=(chroot --userspec=10001:10001 "$root" env -i PATH=/usr/local/bin:/usr/bin:/bin XDG_CACHE_HOME=/tmp VIDI_STATE=/tmp/state)
"${VIDI_NATS_SERVER:-nats-server}" -js -a 127.0.0.1 -p -1 -sd "$work" --ports_file_dir "$work" -l "$work/log" &
broker=$!
until url=$(sed -n 's/.*"\(nats:[^"]*\)".*/\1/p' "$work"/*.ports 2>/dev/null) && [ -n "$url" ]; do sleep 0.1; done
chmod 777 "$root/media"
"${inside[@]}" vidi demo-video /media/demo.mp4 --seed 7 --seconds 12
for stage in decode vision audio fuse llm; do
  "${inside[@]}" vidi --set "bus.url=$url" --set 'decode.media_roots=["/media"]' --set model.dir=demo stage $stage --alive /tmp/$stage &
  pipeline="$pipeline $!"
done
for stage in decode vision audio fuse llm; do
  until "${inside[@]}" test -e /tmp/$stage; do sleep 0.5; done
done
"${inside[@]}" vidi --set "bus.url=$url" ask /media/demo.mp4 "a white square" --truth /media/demo.json
echo "passed: $(du -sh "$root" --exclude=proc --exclude=dev | cut -f1) of image"
