#!/usr/bin/env bash
# Formats every C++ and CUDA source with the pinned clang-format; --check only prints the differences and fails if there are any.
set -euo pipefail
cd "$(dirname "$0")/.."
pinned=14
tool=$(command -v clang-format-$pinned || command -v clang-format || true)
if [ -z "$tool" ] || ! "$tool" --version | grep -q "version $pinned\."; then
  echo "format: clang-format $pinned is needed (Debian 12: apt-get install clang-format-$pinned)" >&2
  exit 1
fi
mode=(-i)
[ "${1:-}" = --check ] && mode=(--dry-run --Werror)
git ls-files -z --cached --others --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -0 "$tool" "${mode[@]}"
