# Read by test.sh and bench.sh: builds the CUDA backend and its program $1, and ends well, saying that $2 were not run,
# where there is no compiler or no GPU. GLM_RELAY_CUDA_DEVICE picks the GPU (0).
sh native/cuda/build.sh
program=build/cuda/$1
[ -x "$program" ] || exit 0
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "$2: not run: there is no GPU, or no driver (nvidia-smi -L)"
  exit 0
fi
CUDA_VISIBLE_DEVICES=${GLM_RELAY_CUDA_DEVICE:-0}
export CUDA_VISIBLE_DEVICES
