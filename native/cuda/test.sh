#!/bin/sh
# Runs the checks of the CUDA kernels (test/native/cuda_check) on this machine's GPU; they are built with the backend
# and need neither Node nor Python. Where the engine and the npm packages are there as well, whole tiny models
# follow, on one worker and on several. GLM_RELAY_CUDA_DEVICE picks the GPU (0).
set -eu
cd "$(dirname "$0")/../.."
set -- cuda_check "CUDA checks"
. ./native/cuda/on-gpu.sh
GLM_RELAY_TEST_DEVICE=cuda:0
export GLM_RELAY_TEST_DEVICE
for group in elementwise products attention experts; do "$program" "$group"; done
if [ -x node_modules/.bin/vitest ] && [ -e build/native/glm_relay.node ] && [ -e dist/cli/main.js ]; then
  node_modules/.bin/vitest run test/golden/cuda.test.ts test/native/cuda-rows.test.ts test/integration/cuda.test.ts
  # Alone on the GPU: it looks at what is free.
  node_modules/.bin/vitest run test/native/gpu-memory.test.ts
else
  echo "CUDA checks: whole models not run: 'make build' makes what they need"
fi
