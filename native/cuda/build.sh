#!/bin/sh
# Builds the CUDA backend, build/cuda/libglm_relay_cuda.so, for every GPU from the 2080 Ti (sm_75) to the H200
# (sm_90), with PTX of compute_75 and compute_80 for later ones. Needs g++ and nvcc 12 or 13, of which the first
# that is there is taken:
#   1. $CUDA_HOME/bin/nvcc, nvcc in PATH, /usr/local/cuda/bin/nvcc;
#   2. build/tools/cuda, NVIDIA's compiler from PyPI, which is fetched there by pip (270 MB unpacked);
#      GLM_RELAY_FETCH_NVCC=0 forbids that.
# Without one it says so and ends well: nothing else needs the library. Does nothing when nothing changed.
# --report prints registers, spills and shared memory of every kernel, as they were when it was compiled.
set -eu
cd "$(dirname "$0")/../.."

# The oldest release of NVIDIA's wheels that are a whole compiler: so the oldest drivers run what it makes.
wheels="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85"
tools=build/tools/cuda
out=build/cuda
library=$out/libglm_relay_cuda.so
report=$out/resources.txt

case "${1:-}" in
  "" | --report) ;;
  *)
    echo "native/cuda/build.sh: unknown option $1; there is --report" >&2
    exit 1
    ;;
esac

skip() {
  echo "CUDA backend: not built: $1"
  exit 0
}

find_nvcc() {
  for candidate in "${CUDA_HOME:-/nonexistent}/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc \
    "$tools/nvidia/cu13/bin/nvcc"; do
    if [ -x "$candidate" ]; then
      echo "$candidate"
      return
    fi
  done
}

nvcc=$(find_nvcc)
if [ -z "$nvcc" ]; then
  [ "${GLM_RELAY_FETCH_NVCC:-1}" = 0 ] && skip "no nvcc in CUDA_HOME or PATH, and GLM_RELAY_FETCH_NVCC is 0"
  [ "$(uname -m)" = x86_64 ] || skip "no nvcc in CUDA_HOME or PATH (it is fetched for x86_64 only)"
  command -v pip3 >/dev/null 2>&1 || skip "no nvcc in CUDA_HOME or PATH, and no pip3 to fetch one with"
  echo "fetching NVIDIA's compiler from PyPI into $tools"
  mkdir -p build/tools
  rm -rf "$tools.part"
  # shellcheck disable=SC2086
  pip3 install --quiet --no-deps --no-compile --disable-pip-version-check --root-user-action=ignore \
    --target "$tools.part" $wheels || skip "PyPI did not give nvcc"
  rm -rf "$tools"
  mv "$tools.part" "$tools"
  nvcc=$(find_nvcc)
fi
command -v "${CXX:-g++}" >/dev/null 2>&1 || skip "${CXX:-g++} is not installed"

mkdir -p "$out"
# What the backend shares with the engine is compiled into the library once more.
library_sources="$(find native/cuda -name '*.cu' -o -name '*.cc' | sort) $(sed 's/#.*//' native/cuda/shared-sources.txt)"
# The scalar kernels quantize what the programs below compute with. A packaged source tree may lack these.
scalar_sources="$(find native/kernels/scalar -name '*.cc' | sort)"
# The checks of single kernels, but for those that need the emulation.
check_sources=
if [ -d test/native/cuda_check ]; then
  check_sources="$(find test/native/cuda_check -name '*.cc' ! -name barriers.cc | sort)"
fi
# The benchmarks of single kernels.
bench_sources=
if [ -d bench/cuda ]; then bench_sources="$(find bench/cuda -name '*.cc' -o -name '*.cu' | sort)"; fi
options="-std=c++17 -O3 -fmad=false -DGLM_RELAY_CUDA -Inative --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden
  -Xcompiler -ffp-contract=off,-Wall,-Wextra -Xptxas -v -diag-suppress 20011,20014"
targets="-gencode arch=compute_75,code=sm_75 -gencode arch=compute_80,code=sm_80
  -gencode arch=compute_86,code=sm_86 -gencode arch=compute_89,code=sm_89 -gencode arch=compute_90,code=sm_90
  -gencode arch=compute_75,code=compute_75 -gencode arch=compute_80,code=compute_80"
# The wheels keep their libraries in lib, where an installed toolkit has lib64.
home=$(dirname "$(dirname "$nvcc")")
link=
[ -d "$home/lib" ] && link="-L$home/lib"

version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
case "$version" in
  12.*) driver=525.60.13 ;;
  13.*) driver=580.65.06 ;;
  *) skip "$nvcc is of release $version; 12 or 13 is needed" ;;
esac

# Every object that is older than a source or a header is made again.
newest=$(find native test/native/cuda_check bench/cuda -name '*.h' -newer "$library" -print 2>/dev/null | head -1 || true)
[ -e "$library" ] || newest=all
[ native/cuda/build.sh -nt "$library" ] && newest=all
object_of() { echo "$out/$(echo "$1" | tr / _).o"; }
objects_of() {
  for source in $1; do object_of "$source"; done
}
changed=
for source in $library_sources $scalar_sources $check_sources $bench_sources; do
  if [ -n "$newest" ] || [ "$source" -nt "$(object_of "$source")" ]; then changed="$changed $source"; fi
done
library_objects=$(objects_of "$library_sources")
if [ -n "$changed" ] || [ ! -e "$library" ]; then
  echo "compiling the CUDA backend with nvcc $version"
  jobs=${GLM_RELAY_BUILD_JOBS:-$(nproc 2>/dev/null || echo 2)}
  # shellcheck disable=SC2086
  echo $changed | tr ' ' '\n' | xargs -r -P "$jobs" -I{} sh -c '
    object=$1/$(echo "$2" | tr / _).o
    case $2 in *.cu) kind="$3";; *) kind="-x c++";; esac
    "$4" $5 $kind -c "$2" -o "$object.part" >"$object.log" 2>&1 && mv "$object.part" "$object" ||
      { cat "$object.log" >&2; exit 1; }' sh "$out" {} "$targets" "$nvcc" "$options"
  # link_program NAME SOURCES
  link_program() {
    [ -n "$2" ] || return 0
    # shellcheck disable=SC2046,SC2086
    "$nvcc" -cudart static $link $library_objects $(objects_of "$2 $scalar_sources") -o "$out/$1" -lpthread -ldl -lrt
  }
  link_program cuda_check "$check_sources"
  link_program cuda_bench "$bench_sources"
  # shellcheck disable=SC2086
  "$nvcc" -shared -cudart static $link $library_objects -o "$library.part" -Xlinker --no-undefined -lpthread -ldl -lrt \
    -Xlinker --exclude-libs,ALL
  mv "$library.part" "$library"
  cat "$out"/*.cu.o.log | sh native/cuda/resources.sh >"$report"
fi
echo "CUDA backend: $library, nvcc $version, for drivers from $driver on"
if [ "${1:-}" = --report ]; then cat "$report"; fi
