#!/bin/sh
# Builds the native engine into build/native (glm_relay.node and kernel_check), with --sanitize into
# build/native-sanitized with the address and undefined-behaviour sanitizers. Needs cmake, a C++17
# compiler and the npm packages node-api-headers and node-addon-api; nothing is downloaded. Does
# nothing when nothing changed.
set -eu
cd "$(dirname "$0")/.."

for tool in cmake "${CXX:-g++}" node; do
  if ! command -v "$tool" >/dev/null 2>&1; then
    echo "native/build.sh: $tool is not installed (on Debian or Ubuntu: apt-get install cmake g++)" >&2
    exit 1
  fi
done

out=build/native
options=
if [ "${1:-}" = "--sanitize" ]; then
  out=build/native-sanitized
  options=-DGLM_RELAY_SANITIZE=ON
fi
jobs=${GLM_RELAY_BUILD_JOBS:-$(nproc 2>/dev/null || echo 2)}
log=$out/build.log
mkdir -p "$out"
# A cache that was copied with its checkout builds the checkout it came from.
source=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$out/CMakeCache.txt" 2>/dev/null || true)
if [ -n "$source" ] && [ "$(cd "$source" 2>/dev/null && pwd -P)" != "$(cd native && pwd -P)" ]; then
  rm -rf "$out/CMakeCache.txt" "$out/CMakeFiles"
fi
if [ ! -f "$out/CMakeCache.txt" ]; then
  cmake -S native -B "$out" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="${CXX:-g++}" $options >"$log" 2>&1 || {
    cat "$log" >&2
    rm -f "$out/CMakeCache.txt"
    exit 1
  }
fi
cmake --build "$out" --parallel "$jobs" >"$log" 2>&1 || {
  cat "$log" >&2
  exit 1
}
echo "native engine: $out/glm_relay.node"
