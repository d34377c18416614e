#!/usr/bin/env bash
# tidy.sh [BUILD_DIR] [BASE]: clang-tidy on the C++ sources that changed against BASE (default: where this branch left
# main; on main itself, the commit before). BASE=all takes every source. Of a change of more than 40 sources, which is
# a renaming, those 40 that changed most. BUILD_DIR must be configured.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build} base=${2:-}
tool=$(command -v clang-tidy-14 || command -v clang-tidy || true)
if [ -z "$tool" ]; then
  echo "tidy: clang-tidy 14 is needed (Debian 12: apt-get install clang-tidy-14)" >&2
  exit 1
fi
if [ -z "$base" ]; then
  base=$(git merge-base HEAD origin/main 2>/dev/null || git merge-base HEAD main 2>/dev/null || true)
  [ -n "$base" ] && [ "$base" != "$(git rev-parse HEAD)" ] || base=$(git rev-parse -q --verify HEAD~1 || echo HEAD)
fi
[ -f "$build/compile_commands.json" ] || { echo "tidy: $build is not configured" >&2; exit 1; }
if [ "$base" = all ]; then
  mapfile -t changed < <(git ls-files '*.cpp')
else
  git rev-parse -q --verify "$base^{commit}" >/dev/null || { echo "tidy: no commit $base" >&2; exit 1; }
  mapfile -t changed < <(git diff --numstat --no-renames --diff-filter=d "$base" -- '*.cpp' | sort -rn | head -n 40 | cut -f 3)
fi

# The commands of the build, less the launcher and what is GCC's alone;
# clang 14 lacks the std::source_location of the host emulation.
commands=$(mktemp -d)
trap 'rm -rf "$commands"' EXIT
mapfile -t sources < <(python3 - "$build/compile_commands.json" "$commands/compile_commands.json" "${changed[@]}" <<'PYTHON'
import json
import os
import re
import sys

entries, changed = {}, {os.path.realpath(path): path for path in sys.argv[3:]}
for entry in json.load(open(sys.argv[1], encoding="utf-8")):
    if "-DPTRT_CUDA_EMULATION" in entry["command"]:
        continue
    entry["command"] = re.sub(r"^.*?ccache |-Winvalid-pch|-fpch-preprocess|-include \S*cmake_pch\.hxx|-fno-var-tracking", "", entry["command"])
    entries.setdefault(os.path.realpath(entry["file"]), entry)
json.dump(list(entries.values()), open(sys.argv[2], "w", encoding="utf-8"))
for path in sorted(changed):
    if path in entries:
        print(changed[path])
PYTHON
)
echo "tidy: ${#sources[@]} of ${#changed[@]} changed sources are in $build"
[ ${#sources[@]} -eq 0 ] && exit 0
printf '%s\0' "${sources[@]}" |
  xargs -0 -n 4 -P "$(nproc)" "$tool" -p "$commands" --quiet --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-everything
