#!/usr/bin/env bash
# Registers, static shared memory, stack and spills of every kernel, as ptxas reports them for one architecture
# (default: the last of Makefile.inc). Fails if a kernel spills. Needs nvcc, but no GPU.
#   scripts/cuda_resources.sh [sm_90]
set -euo pipefail
cd "$(dirname "$0")/.."
setting() { sed -n "s/^$1 *?= *//p" Makefile.inc; }
home=${CUDA_HOME:-$(setting CUDA_HOME)}
nvcc=${home:+$home/bin/nvcc}
[ -n "$nvcc" ] || nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
[ -x "$nvcc" ] || { echo "cuda_resources: no nvcc at $nvcc (CUDA_HOME in Makefile.inc)" >&2; exit 1; }
architecture=${1:-sm_$(setting CUDA_ARCHITECTURES | sed 's/.*;//')}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for source in kernels/cuda/*/*.cu; do
  target=$architecture
  if [[ $source == *wgmma* ]]; then  # only for sm_90a
    [ "$architecture" = sm_90 ] || continue
    target=sm_90a
  fi
  "$nvcc" -std=c++20 -O3 --expt-relaxed-constexpr -I. -gencode "arch=compute_${target#sm_},code=$target" -Xptxas -v -cubin \
    -o "$scratch/cubin" "$source" 2>&1
done | c++filt > "$scratch/report"

# Template arguments identify the instances of a kernel; namespaces and parameters are left out.
awk '
  BEGIN { printf "%-44s %9s %8s %7s %7s\n", "kernel (" ARGV[2] ")", "registers", "shared", "stack", "spilled"; ARGC = 2 }
  /Compiling entry function/ {
    name = $0; sub(/.*entry function ./, "", name); sub(/. for .sm_.*/, "", name)
    gsub(/ptrt::|cuda::|\(anonymous namespace\)::|^void |__nv_/, "", name); sub(/\(.*/, "", name)
    entry = name
  }
  entry != "" && /bytes stack frame/ { stack = $1; spilled = $5 + $9 }
  entry != "" && /Used [0-9]+ registers/ {
    registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers)
    shared = 0
    if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
    printf "%-44s %9d %8d %7d %7d\n", entry, registers, shared, stack, spilled
    if (spilled > 0) bad++
    kernels++
    entry = ""
  }
  END {
    if (kernels == 0) { print "cuda_resources: ptxas reported no kernel" > "/dev/stderr"; exit 1 }
    if (bad > 0) { print "cuda_resources: " bad " kernels spill registers" > "/dev/stderr"; exit 1 }
  }' "$scratch/report" "$architecture"
