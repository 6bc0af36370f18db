#!/bin/sh
# Builds the native engine into build/native (glm_relay.node and kernel_check), with --sanitize into
# build/native-sanitized with the address and undefined-behaviour sanitizers, with --sanitize-threads into
# build/native-threads with the thread sanitizer. Needs cmake, a C++17
# compiler and the npm packages node-api-headers and node-addon-api; nothing is downloaded. Does
# nothing when nothing changed.
#
# For checks on CPUs that this machine is not, kernel_check alone: with --aarch64 into
# build/native-aarch64 by a cross compiler, linked statically to be run by qemu-aarch64; with --simde into
# build/native-simde with every instruction of the x86 variants replaced by SIMDe's portable code.
set -eu
cd "$(dirname "$0")/.."

out=build/native
options=
compiler=${CXX:-g++}
case "${1:-}" in
  --sanitize)
    out=build/native-sanitized
    options=-DGLM_RELAY_SANITIZE=ON
    ;;
  --sanitize-threads)
    out=build/native-threads
    options=-DGLM_RELAY_SANITIZE_THREADS=ON
    ;;
  --aarch64)
    out=build/native-aarch64
    compiler=aarch64-linux-gnu-g++
    options="-DGLM_RELAY_ADDON=OFF -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
      -DCMAKE_EXE_LINKER_FLAGS=-static"
    ;;
  --simde)
    out=build/native-simde
    options="-DGLM_RELAY_ADDON=OFF -DGLM_RELAY_SIMDE=ON"
    ;;
  "") ;;
  *)
    echo "native/build.sh: unknown option $1; there are --sanitize, --sanitize-threads, --aarch64 and --simde" >&2
    exit 1
    ;;
esac

for tool in cmake "$compiler" node; do
  if ! command -v "$tool" >/dev/null 2>&1; then
    echo "native/build.sh: $tool is not installed (on Debian or Ubuntu: apt-get install cmake g++)" >&2
    exit 1
  fi
done

jobs=${GLM_RELAY_BUILD_JOBS:-$(nproc 2>/dev/null || echo 2)}
log=$out/build.log
mkdir -p "$out"
# A cache that was copied with its checkout builds the checkout it came from.
source=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$out/CMakeCache.txt" 2>/dev/null || true)
if [ -n "$source" ] && [ "$(cd "$source" 2>/dev/null && pwd -P)" != "$(cd native && pwd -P)" ]; then
  rm -rf "$out/CMakeCache.txt" "$out/CMakeFiles"
fi
if [ ! -f "$out/CMakeCache.txt" ]; then
  cmake -S native -B "$out" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$compiler" $options >"$log" 2>&1 || {
    cat "$log" >&2
    rm -f "$out/CMakeCache.txt"
    exit 1
  }
fi
cmake --build "$out" --parallel "$jobs" >"$log" 2>&1 || {
  cat "$log" >&2
  exit 1
}
echo "native engine: $out"
