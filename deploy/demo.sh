#!/usr/bin/env bash
# Asks about a video: deploy/demo.sh [VIDEO QUESTION [MODEL]]
# Sets everything up first. Without VIDEO it makes one whose truth is known, asks three questions about it, prints each
# answer beside the truth, and ends with failure if one is not true (IoU under 0.5, or other words).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/deploy/setup.sh"
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
(cd "$root" && cargo build --release --locked -p deploy)
vidi=$root/target/release/vidi

if [ $# -gt 0 ]; then
  question=${2:?give a question too: deploy/demo.sh VIDEO QUESTION [MODEL]}
  model=${3:-${VIDI_MODEL:-demo}}
  if [ "$model" = demo ]; then
    echo "No weights given: the demo model knows coloured shapes, beeps, hums and noise, and NOTHING else." >&2
  fi
  exec "$vidi" ask "$1" "$question" --model "$model"
fi

mkdir -p "$root/.vidi/demo"
cd "$root/.vidi/demo"
# A pipeline of its own, whatever else runs on this machine.
export VIDI_STATE=$PWD/state
failed=0
# Shows a command and runs it.
run() {
  local shown="$ vidi" word
  for word in "$@"; do
    case $word in
      *" "*) shown+=" \"$word\"" ;;
      *) shown+=" $word" ;;
    esac
  done
  printf '\n%s\n' "$shown"
  "$vidi" "$@" || failed=$?
}
ask() { run ask demo.mp4 "$@" --model demo --truth demo.json --quiet; }

run demo-video demo.mp4 --seed 1
[ "$failed" = 0 ] || exit "$failed"
ask "a cross"
ask "a beep"
ask "What colour is the square?" --task qa
exit "$failed"
