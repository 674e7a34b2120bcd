#!/usr/bin/env bash
# The dependencies between crates that ARCHITECTURE.md rules out, checked with cargo tree: what each crate must not have
# below it, whatever features it is built with. Exit status: 0 if all hold, 1 if one is broken, which it names.
set -euo pipefail
cd "$(dirname "$0")/.."

broken=0
stages=(stage-*/)
stages=("${stages[@]%/}")

# The packages below a crate, one name a line, with all of its features or those given.
below() {
  local crate=$1
  shift
  cargo tree --locked -e normal -p "$crate" --prefix none --format '{p}' "${@:---all-features}" | cut -d' ' -f1 | sort -u
}

# without CRATE WHAT-TO-DO NAME...: none of the packages NAME (a pattern) is below CRATE.
without() {
  local crate=$1 todo=$2 packages name found
  shift 2
  packages=$(below "$crate")
  for name in "$@"; do
    for found in $(grep -xE "$name" <<<"$packages" || true); do
      echo "invariant broken: $crate depends on $found, by this way (read upwards):"
      cargo tree --locked -e normal -p "$crate" --all-features -i "$found" | sed 's/^/    /'
      echo "  what to do: $todo"
      broken=1
    done
  done
}

wire='move the code that needs it to runtime (bus), compute (tensors) or deploy (command line)'
without protocol "protocol is what travels and the contract of a stage; $wire" 'candle-.*' tokio async-nats clap
without config "config is read by everything; $wire" 'candle-.*' tokio async-nats
without runtime 'runtime carries bytes and never looks into a tensor; move the code to compute, to model or to a stage' \
  'candle-.*' compute model
for stage in "${stages[@]}"; do
  without "$stage" 'a stage library knows no bus; take what it needs from protocol, or move the code to runtime' async-nats runtime
done

# CUDA comes with the feature "cuda" of compute, and in no other way: not without it, not below crates that do not
# compute, and not as a dependency of any crate but compute itself.
for crate in protocol config runtime nvcc stage-decode; do
  without "$crate" 'only crates that compute on a GPU may have CUDA, and they have it by compute'"'"'s feature "cuda"' cudarc
done
members=$(cargo tree --locked --workspace --depth 0 --prefix none --format '{p}' | cut -d' ' -f1 | grep . | sort -u)
if below tests --features default | grep -qx cudarc; then
  echo 'invariant broken: the tree without the feature "cuda" has cudarc, by this way (read upwards):'
  cargo tree --locked -e normal -p tests -i cudarc | sed 's/^/    /'
  echo '  what to do: make the dependency that brings it optional, below compute'"'"'s feature "cuda"'
  broken=1
fi
for crate in $members; do
  [ "$crate" = compute ] && continue
  if cargo tree --locked -e normal -p "$crate" --all-features --depth 1 --prefix none --format '{p}' | grep -q '^cudarc '; then
    echo "invariant broken: $crate depends on cudarc itself"
    echo "  what to do: call CUDA in compute, and take what $crate needs from there"
    broken=1
  fi
  # Each package with the features that it is built with.
  tree=$(cargo tree --locked -e normal -p "$crate" --all-features --prefix none --format '{p} {f}')
  if grep -q '^cudarc ' <<<"$tree" && ! grep -qE '^compute .*[ ,]cuda(,|$| )' <<<"$tree"; then
    echo "invariant broken: $crate has cudarc without compute's feature \"cuda\""
    echo "  what to do: let the feature \"cuda\" of $crate turn on that of compute or model"
    broken=1
  fi
done

[ "$broken" = 0 ] && echo "dependencies between crates: as they must be (protocol, config, runtime, ${#stages[@]} stages, CUDA)"
exit "$broken"
