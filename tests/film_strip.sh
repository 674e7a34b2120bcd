#!/usr/bin/env bash
# Draws the frames of a `vidi demo-video` that the model sees, one a second, in one row: above it a bar where the truth is,
# below it one where the answer is. tests/film_strip.sh VIDEO TRUTH ANSWER OUT.png, times as 5.0-12.0,14-15.5 (seconds).
set -euo pipefail
video=$1 truth=$2 answer=$3 out=$4
width=64 height=36 bar=8

# A filled box for each range, at height $2 in colour $3.
bars() {
  local range
  for range in ${1//,/ }; do
    awk -v range="$range" -v w="$width" -v y="$2" -v h="$bar" -v c="$3" 'BEGIN {
      split(range, t, "-")
      printf ",drawbox=x=%d:y=%d:w=%d:h=%d:color=%s:t=fill", t[1] * w, y, (t[2] - t[1]) * w, h, c
    }'
  done
}

seconds=$(ffprobe -v error -select_streams v -show_entries stream=duration -of csv=p=0 "$video")
# Ten pictures a second (common/demo-video/src/lib.rs).
strip="select='not(mod(n,10))',scale=$width:$height,tile=${seconds%.*}x1,pad=iw:ih+$((2 * bar)):0:$bar:white"
ffmpeg -v error -y -i "$video" -frames:v 1 \
  -vf "$strip$(bars "$truth" 0 green)$(bars "$answer" $((bar + height)) blue)" "$out"
