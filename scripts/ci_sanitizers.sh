#!/usr/bin/env bash
# Builds with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests of a single process under each.
set -euo pipefail
cd "$(dirname "$0")/.."
INSTALL_DEPS=${INSTALL_DEPS:-1} scripts/install_deps.sh
for preset in asan ubsan; do
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset" --parallel 2 | tail -n 1
  ctest --preset "$preset" --label-exclude 'mpi|cli' --output-on-failure | tail -n 3 || exit 1
done
