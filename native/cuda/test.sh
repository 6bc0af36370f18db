#!/bin/sh
# Runs the checks of the CUDA kernels (test/native/cuda_check) on this machine's GPU; they are built with the backend
# and need neither Node nor Python. Where the engine and the npm packages are there as well, whole tiny models
# follow, on one worker and on several. GLM_RELAY_CUDA_DEVICE picks the GPU (0).
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
GLM_RELAY_TEST_DEVICE=cuda:0
export CUDA_VISIBLE_DEVICES GLM_RELAY_TEST_DEVICE
for group in elementwise products attention experts; do "$program" "$group"; done
if [ -x node_modules/.bin/vitest ] && [ -e build/native/glm_relay.node ] && [ -e dist/cli/main.js ]; then
  node_modules/.bin/vitest run test/golden/cuda.test.ts test/native/cuda-rows.test.ts test/integration/cuda.test.ts
  # Alone on the GPU: it looks at what is free.
  node_modules/.bin/vitest run test/native/gpu-memory.test.ts
else
  echo "CUDA checks: whole models not run: 'make build' makes what they need"
fi
