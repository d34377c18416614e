#!/usr/bin/env bash
# Runs one stage of gpu_check.sh: stages.sh WORK [ARGUMENT…], from the repository's root. Environment:
# PROGRAMS (a build folder or a bundle), OUT (absolute), COMMIT, SANITIZER.
set -euo pipefail

program() {
  if [ -x "$PROGRAMS/run" ]; then "$PROGRAMS/run" "$@"; else "$PROGRAMS/$1" "${@:2}"; fi
}

build() {
  cmake -S . -B "$PROGRAMS" -DCMAKE_BUILD_TYPE=Release -DPTRT_BUILD_PERF=ON
  cmake --build "$PROGRAMS" -j "$(nproc)" --target ptrt ptrt_cuda cuda_gpu_tests cuda_gpu_model_tests bench_cuda
}

# A skipped test is a failure.
gpu_tests() {
  export PTRT_DEMO_MODEL=$PWD/examples/demo/demo.h5
  program "$1" --gtest_filter='-*/cpu' | tee "$OUT/log/$1.txt"
  if grep -q SKIPPED "$OUT/log/$1.txt"; then echo "tests were skipped"; return 1; fi
}

# The checker follows the programs that a wrapper starts. float16 is left out: the same sources make the same accesses.
# NCCL is left out: its own kernels, and its probing of the machine, are not part of this project.
checker() {
  local command=("$PROGRAMS/cuda_gpu_tests")
  [ ! -x "$PROGRAMS/run" ] || command=("$PROGRAMS/run" cuda_gpu_tests)
  "$SANITIZER" --tool "$1" --target-processes all --error-exitcode 9 "${command[@]}" --gtest_filter='*/cuda:-*DeviceCollective*'
}

demo() {
  local model=examples/demo/demo.h5 questions=examples/demo/heldout.jsonl device
  python3 scripts/gpu/compare_demo.py texts "$OUT/texts.jsonl"
  for device in cpu cuda; do
    local options=(--backend "$device" --quiet)
    [ "$device" = cuda ] || options+=(--compute float32)
    program ptrt score $model "$OUT/texts.jsonl" -o "$OUT/scores_$device.jsonl" "${options[@]}"
    program ptrt generate $model $questions -o "$OUT/answers_$device.jsonl" "${options[@]}"
  done
  python3 scripts/gpu/compare_demo.py compare "$OUT"
}

bench_ops() { program bench_cuda --json "$OUT/ops.json"; }

# What a rank computes of perf/configs/$1.json, a track of several.
bench_shape() { program bench_cuda --config "perf/configs/$1.json" --json "$OUT/ops_$1.json"; }

# Random weights of an 8-billion-parameter shape.
bench_model() {
  program ptrt bench --backend cuda --random-weights perf/configs/dense_8b.json --max-step-tokens 4096 \
    --json "$OUT/bench_$1.json" "${@:2}"
}

hf() { python3 perf/hf_decode.py --config perf/configs/dense_8b.json --batch 128 --input-len 128 --json "$OUT/hf.json"; }

report() { python3 perf/cuda_report.py "$OUT" --commit "$COMMIT" --table "$OUT/summary.md" --json "$OUT/cuda.json"; }

"$@"
