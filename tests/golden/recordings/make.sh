#!/usr/bin/env bash
# Makes the golden recording of the wire version that the built `vidi` speaks; see README.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../../..
vidi=${VIDI:-$root/target/debug/vidi}
out=$here/v1-clip.vidirec
work=$(mktemp -d)
export VIDI_STATE=$work/state

# Lossless sound, so that what is decoded does not depend on the decoder.
[ -f "$here/clip.mkv" ] || ffmpeg -v error -bitexact \
    -f lavfi -i testsrc=size=160x90:rate=10:duration=2 \
    -f lavfi -i sine=frequency=440:beep_factor=4:sample_rate=16000:duration=2 \
    -c:v libx264 -pix_fmt yuv420p -c:a pcm_s16le -flags:v +bitexact "$here/clip.mkv"

"$vidi" up --model "$root/tests/golden/checkpoints/tied" --media-root "$here" > "$work/up.log" 2>&1 &
up=$!
trap 'kill $up; wait $up || true; rm -rf "$work"' EXIT
until grep -q '^ready:' "$work/up.log"; do kill -0 $up; sleep 0.2; done

rm -f "$out"
touch "$work/record.log"
"$vidi" record --out "$out" --job recorded 2> "$work/record.log" &
recorder=$!
until grep -q '^recording' "$work/record.log"; do kill -0 $recorder; sleep 0.1; done
"$vidi" ask "$here/clip.mkv" "a red box" --job recorded --max-new-tokens 16 --quiet > "$work/answer.txt"
wait $recorder
"$vidi" recording show "$out"
