#!/usr/bin/env bash
# run_demo.sh PTRT DEMO_FOLDER RANKS MPIRUN [FLAGS…]: the demo prompts through mpirun, shown with their answers.
set -euo pipefail
ptrt=$1 demo=$2 ranks=$3
shift 3
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
command=("$@" -n "$ranks" "$ptrt" generate "$demo/demo.h5" "$demo/prompts.jsonl" -o "$out/results.jsonl")
echo "\$ ${command[*]/$out\//}"
"${command[@]}" 2> >(tee "$out/log" >/dev/null) || { cat "$out/log" >&2; exit 1; }
/usr/bin/env python3 "$(dirname "$0")/show_results.py" "$demo/prompts.jsonl" "$out/results.jsonl"
echo
cat "$out/log"
