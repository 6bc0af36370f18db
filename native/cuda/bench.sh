#!/bin/sh
# Measures the CUDA kernels, and where the engine and the npm packages are there ('make build') whole stages, on this
# machine's GPU beside its own limits. GLM_RELAY_CUDA_DEVICE picks the GPU (0).
set -eu
cd "$(dirname "$0")/../.."
set -- cuda_bench "CUDA benchmarks"
. ./native/cuda/on-gpu.sh
"$program" all
if [ -e build/native/glm_relay.node ] && [ -e dist/bench/main.js ]; then
  node dist/bench/main.js gpu
else
  echo "CUDA benchmarks: whole stages not run: 'make build' makes what they need"
fi
