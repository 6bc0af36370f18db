#!/bin/sh
# Formats the C++ of the engine; with --check only reports what would change.
set -eu
cd "$(dirname "$0")/.."
if ! command -v clang-format >/dev/null 2>&1; then
  echo "native/format.sh: clang-format is not installed; C++ formatting was not looked at"
  exit 0
fi
# Versions differ in what they call well formatted; Debian 12's is ours.
case "$(clang-format --version)" in
  *"version 14."*) ;;
  *)
    echo "native/format.sh: clang-format 14 is needed, found '$(clang-format --version)'; C++ formatting was not looked at"
    exit 0
    ;;
esac
files=$(find native test/native bench/kernels bench/cuda -name '*.cc' -o -name '*.h' -o -name '*.cu')
if [ "${1:-}" = "--check" ]; then
  # One style file serves both folders, so that the checks of test/native look like the engine.
  clang-format --style=file:native/.clang-format --dry-run --Werror $files
else
  clang-format --style=file:native/.clang-format -i $files
fi
