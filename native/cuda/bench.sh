#!/bin/sh
# Measures the CUDA kernels, and where the engine and the npm packages are there ('make build') whole stages, on this
# machine's GPU beside its own limits. GLM_RELAY_CUDA_DEVICE picks the GPU (0).
set -eu
cd "$(dirname "$0")/../.."
sh native/cuda/build.sh
program=build/cuda/cuda_bench
[ -x "$program" ] || exit 0
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "CUDA benchmarks: not run: there is no GPU, or no driver (nvidia-smi -L)"
  exit 0
fi
CUDA_VISIBLE_DEVICES=${GLM_RELAY_CUDA_DEVICE:-0}
export CUDA_VISIBLE_DEVICES
"$program" all
if [ -e build/native/glm_relay.node ] && [ -e dist/bench/main.js ]; then
  node dist/bench/main.js gpu
else
  echo "CUDA benchmarks: whole stages not run: 'make build' makes what they need"
fi
