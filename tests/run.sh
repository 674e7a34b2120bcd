#!/usr/bin/env bash
# All that needs no GPU: format, dependencies between crates, clippy, unit, property, parity, end-to-end, replay and
# fault tests.
# Sets everything up first, on a machine that has never seen the project.
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/setup.sh test
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"

# The current broker for most tests; Debian's for those that show that both work.
export VIDI_NATS_SERVER=$PWD/.vidi/nats/bin/nats-server
export VIDI_NATS_SERVER_OLD=${VIDI_NATS_SERVER_OLD:-/usr/sbin/nats-server}
echo "brokers: $("$VIDI_NATS_SERVER" --version), $("$VIDI_NATS_SERVER_OLD" --version)"

# candle reads /proc/cpuinfo at every matmul unless this is set; commands set it themselves (common/compute/src/threads.rs), test programs cannot.
export RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-$(nproc)}

# Most tests wait for processes half of the time. The fault suite runs with more (programs.py).
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))}

step() { echo; echo "== $*"; "$@"; }
# Of what the lock file brings in: deny.toml. Its advisories need the network, and are not asked for here.
licences() {
  if cargo deny --version >/dev/null 2>&1; then
    cargo deny check bans licenses sources
  else
    echo "skipped: cargo-deny is not installed (cargo install cargo-deny --locked)"
  fi
}
# Nothing here runs a kernel; a broken one must not land all the same. To optimize them would take three times as long.
kernels() {
  printf '%s\0' common/compute/kernels/*.cu stage-llm/kernels/*.cu | xargs -0 -n 1 -P "$(nproc)" \
    .vidi/cuda/nvidia/cu13/bin/nvcc -Xcicc -O0 -Xptxas -O0 -std=c++17 --expt-relaxed-constexpr -arch=sm_89 -cubin -o /dev/null
}

# The tests start ffmpeg and ffprobe two thousand times, and each start links 215 libraries: 60 ms of CPU time.
forks=$(mktemp -d)
trap 'jobs -p | xargs -r kill; rm -r "$forks"' EXIT
fork_server() {
  cc -O1 -Wall -Wextra -Werror -shared -fPIC -DSERVER -o "$forks/server.so" tests/fork_server.c
  local program real
  for program in ffmpeg ffprobe; do
    real=$(command -v "$program")
    cc -O1 -Wall -Wextra -Werror -DPROGRAM="\"$real\"" -DFORK_SERVER_SOCKET="\"$forks/$program.socket\"" -o "$forks/$program" \
      tests/fork_server.c
    LD_PRELOAD=$forks/server.so FORK_SERVER_SOCKET=$forks/$program.socket "$real" </dev/null &
  done
  export PATH=$forks:$PATH
}

step cargo fmt --all --check
step licences
# Beside the build, which has but one thing to do now and then: they take what it leaves.
beside() {
  renice -n 10 "$BASHPID" >/dev/null
  step kernels && step tests/invariants.sh
}
beside >"$forks/beside" 2>&1 &
beside=$!
# Nothing is built twice. clippy-driver is rustc with clippy's lints: it builds what the tests run, while `cargo clippy` would
# first read all dependencies without building them. And the tests start the commands: one call builds both, all targets, and no
# examples in documentation: there are none (invariants.sh), and rustdoc would read every crate to find that.
export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__
echo && echo "== cargo build --workspace --all-targets --locked"
built=$(cargo build --workspace --all-targets --locked --message-format=json-render-diagnostics)
checked=0
wait "$beside" || checked=$?
cat "$forks/beside"
[ "$checked" = 0 ] || exit "$checked"
step fork_server
tests/programs.py <<<"$built"
