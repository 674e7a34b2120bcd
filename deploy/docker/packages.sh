#!/usr/bin/env bash
# Debian or Ubuntu packages of the images: deploy/docker/packages.sh build (to compile) or run (to decode and serve).
set -euo pipefail
case ${1:-} in
  build) packages=(build-essential pkg-config libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev) ;;
  run)
    packages=(
      ca-certificates curl
      gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav
    )
    ;;
  *)
    echo "usage: $0 build|run" >&2
    exit 2
    ;;
esac
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}"
rm -rf /var/lib/apt/lists/*
