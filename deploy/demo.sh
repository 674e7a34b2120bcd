#!/usr/bin/env bash
# Asks a question about a video: deploy/demo.sh [VIDEO [QUESTION [MODEL]]]
# Sets everything up first. Without VIDEO it makes one, without MODEL (or VIDI_MODEL) it takes random weights.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/deploy/setup.sh"
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
(cd "$root" && cargo build --release --locked -p deploy)
vidi=$root/target/release/vidi
work=$root/.vidi/demo
mkdir -p "$work"

video=${1:-}
question=${2:-a ball that moves}
model=${3:-${VIDI_MODEL:-}}

if [ -z "$video" ]; then
  video=$work/test.mp4
  echo "making a test video of 10 s with picture and sound: $video" >&2
  gst-launch-1.0 -q -e mp4mux name=mux ! filesink location="$video" \
    videotestsrc pattern=ball num-buffers=300 ! video/x-raw,width=640,height=360,framerate=30/1 \
    ! x264enc speed-preset=veryfast ! h264parse ! queue ! mux. \
    audiotestsrc wave=ticks num-buffers=469 ! audio/x-raw,rate=48000,channels=2 ! avenc_aac ! aacparse ! queue ! mux.
fi
if [ -z "$model" ]; then
  echo "No weights given: random ones show that everything runs. What they say is NO ANSWER; 24 tokens of it are enough." >&2
  exec "$vidi" ask "$video" "$question" --weights random:tiny --max-new-tokens 24
fi
exec "$vidi" ask "$video" "$question" --model "$model"
