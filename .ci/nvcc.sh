#!/usr/bin/env bash
# Prints the path of an nvcc of version 13.0, installing it from PyPI if need be (60 MB of wheels, no GPU, no root).
# It is kept outside of the repository; SIDEREAL_NVCC, if set, is taken as it is.
set -euo pipefail

if [ -n "${SIDEREAL_NVCC:-}" ]; then
    echo "$SIDEREAL_NVCC"
    exit
fi

home="${SIDEREAL_NVCC_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/sidereal/nvcc-13.0}"
found() { find "$home"/lib*/python*/site-packages/nvidia/cu13/bin/nvcc -type f 2>/dev/null | head -n 1; }

if [ ! -e "$home/complete" ]; then
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        (apt-get update && apt-get install -y --no-install-recommends python3-venv) >/dev/null
    fi
    rm -rf "$home"
    mkdir -p "$home"
    python3 -m venv "$home"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check \
        'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
        'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' >&2
    "$(found)" --version >/dev/null
    touch "$home/complete"
fi
found
