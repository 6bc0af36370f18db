#!/bin/sh
# Runs the checks of the CUDA kernels (test/native/cuda_check) on this machine's GPU: built with the backend, they
# need neither Node nor Python. GLM_RELAY_CUDA_DEVICE picks the GPU (0).
set -eu
cd "$(dirname "$0")/../.."
sh native/cuda/build.sh
program=build/cuda/cuda_check
[ -x "$program" ] || exit 0
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "CUDA checks: not run: there is no GPU, or no driver (nvidia-smi -L)"
  exit 0
fi
CUDA_VISIBLE_DEVICES=${GLM_RELAY_CUDA_DEVICE:-0}
export CUDA_VISIBLE_DEVICES
for group in elementwise products attention; do "$program" "$group"; done
