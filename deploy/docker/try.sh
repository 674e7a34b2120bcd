#!/usr/bin/env bash
# Builds the `cpu` image without a container engine, in clean Debian roots, and asks a question in it: what Dockerfile does. As root,
# with mmdebstrap and cargo: deploy/docker/try.sh DIRECTORY [VIDI] (a new directory; the command, which is compiled without it).
# VIDI_NATS_SERVER names the broker, which is not in the image; APT_SOURCES a file of package sources, the host's if it has one.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=${1:?usage: deploy/docker/try.sh DIRECTORY [VIDI]} vidi=${2:-}
sources=${APT_SOURCES:-/etc/apt/sources.list.d/debian.sources}
[ -f "$sources" ] || sources=
for new in "$root" "$root.build"; do
  [ ! -e "$new" ] || { echo "error: $new is there already" >&2; exit 1; }
done

# The stage `build-cpu`. Rust and the crates are the host's: what the image `rust` adds to Debian, and the cache that it is given.
compile() {
  local in=$root.build
  mmdebstrap --quiet --variant=minbase bookworm "$in" $sources
  install -D -t "$in/tmp" deploy/docker/packages.sh
  chroot "$in" /tmp/packages.sh build
  cargo fetch --quiet --locked
  cp -rL "$(rustc --print sysroot)" "$in/usr/local/rust"
  mkdir -p "$in/src" "$in/usr/local/cargo"
  cp -r "${CARGO_HOME:-$HOME/.cargo}/registry" "$in/usr/local/cargo/"
  tar -c --exclude-from=<(grep -v '^#' deploy/docker/Dockerfile.dockerignore | sed 's#^\*\*/##') . | tar -x -C "$in/src"
  # rustc finds its libraries by way of /proc.
  mount --bind /proc "$in/proc"
  mount --bind /dev "$in/dev"
  trap 'umount "$in/proc" "$in/dev"' RETURN
  chroot "$in" env -i HOME=/root CARGO_HOME=/usr/local/cargo PATH=/usr/local/rust/bin:/usr/bin:/bin \
    sh -c 'cd /src && cargo build --release --locked --offline -p deploy && cp target/release/vidi /vidi'
}
if [ -z "$vidi" ]; then
  compile
  vidi=$root.build/vidi
fi

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
