#!/usr/bin/env bash
# Tests and measures the CUDA backend on a machine with a GPU, in one call: tests, the memory and race checkers, the
# demo model beside the CPU, benchmarks of ops and of whole models. Every stage runs even if another failed. Results and
# logs are written to OUT_DIR; the output ends with a table. Exit status: 0, 1 if a stage failed, 2 if there is no GPU or
# the call is wrong.
#
#   scripts/gpu_check.sh [--build DIR | --prebuilt DIR] [--time-limit SECONDS] [--dry-run] [OUT_DIR]
#   scripts/gpu_check.sh --bundle DIR [--build DIR]
#
#   --build DIR     build folder (default build-gpu), configured and built first; needs the packages of install_deps.sh
#   --prebuilt DIR  use the output of --bundle and build nothing; needs the driver, cuBLASLt, NCCL and python3 on this
#                   machine. For --prebuilt and --bundle, a DIR that ends in .tar.gz is an archive
#   --bundle DIR    on a machine without a GPU: collect the programs of a build folder (--build, default build) that was
#                   configured with -DPTRT_BUILD_PERF=ON, and their shared libraries except glibc, cuBLAS and NCCL
#   --time-limit S  of all stages together (default 540 with --prebuilt, else 3600); a stage without time left fails
#   --dry-run       only print the stages, their time limits and commands
#   OUT_DIR         default gpu-check
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "gpu_check: $*" >&2; exit 2; }

build='' prebuilt='' bundle='' dry_run=0 out=gpu-check time_limit=''
while [ $# -gt 0 ]; do
  case $1 in
    --build | --prebuilt | --bundle | --time-limit)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --build) build=$2 ;;
        --prebuilt) prebuilt=$2 ;;
        --bundle) bundle=$2 ;;
        --time-limit) time_limit=$2 ;;
      esac
      shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) die "unknown option $1 (--help tells them)" ;;
    *) out=$1; shift ;;
  esac
done
[ -z "$build" ] || [ -z "$prebuilt" ] || die "--build and --prebuilt exclude each other"
[[ -z $time_limit || $time_limit =~ ^[1-9][0-9]*$ ]] || die "--time-limit takes seconds"
[ -z "$bundle" ] || exec scripts/gpu/make_bundle.sh "${build:-build}" "$bundle"

if [[ $prebuilt == *.tar.gz ]]; then
  [ -f "$prebuilt" ] || die "no file $prebuilt"
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  tar -xzf "$prebuilt" -C "$unpacked" || die "cannot unpack $prebuilt"
  prebuilt=$unpacked
fi
if [ -n "$prebuilt" ]; then
  [ -x "$prebuilt/run" ] || die "$prebuilt is no bundle (make one with --bundle)"
  PROGRAMS=$(cd "$prebuilt" && pwd)
  commit=$(cat "$PROGRAMS/COMMIT")
else
  PROGRAMS=${build:-build-gpu}
  commit=$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown)
fi
: "${time_limit:=$([ -n "$prebuilt" ] && echo 540 || echo 3600)}"

if [ $dry_run = 0 ]; then
  nvidia-smi -L 2>/dev/null | grep -q GPU ||
    die "no GPU here (nvidia-smi lists none); nothing was run. --dry-run shows what would be"
  command -v python3 >/dev/null || die "python3 is needed"
  [ -z "$prebuilt" ] || missing=$("$PROGRAMS/run" --missing) || die "the bundle's programs do not find:"$'\n'"$missing"
  mkdir -p "$out/log" "$PROGRAMS"
  out=$(cd "$out" && pwd) PROGRAMS=$(cd "$PROGRAMS" && pwd)
  rm -f "$out"/{ops,ops_pt8_30b_d8,bench_one,bench_batch,demo,hf,cuda}.json "$out/summary.md"  # of an earlier call
  : >"$out/stages.jsonl"
fi
SANITIZER=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
export PROGRAMS SANITIZER OUT=$out COMMIT=$commit
deadline=$((SECONDS + time_limit))
failed=()

record() { python3 scripts/gpu/record.py "$out/stages.jsonl" "$@"; }

# stage NAME SECONDS WORK [ARGUMENT…]: runs WORK of scripts/gpu/stages.sh with that time limit; the log is in OUT_DIR/log.
stage() {
  local name=$1 limit=$2 status=0 start=$SECONDS left=$((deadline - SECONDS)) verdict=ok
  shift 2
  if [ $dry_run = 1 ]; then
    printf '%-12s %5d s  %s\n' "$name" "$limit" "$*"
    return
  fi
  local log="$out/log/$name.log"
  [ "$left" -ge "$limit" ] || limit=$left
  if [ "$limit" -le 0 ]; then
    echo "no time left of $time_limit s" >"$log"
    status=124
  else
    timeout --kill-after=10 "$limit" bash scripts/gpu/stages.sh "$@" >"$log" 2>&1 || status=$?
  fi
  case $status in
    0) ;;
    124 | 137) verdict="FAILED: out of time" ;;
    *) verdict="FAILED: status $status" ;;
  esac
  printf '%-12s %5d s  %s\n' "$name" $((SECONDS - start)) "$verdict"
  [ $status = 0 ] || { failed+=("$name"); tail -n 5 "$log" | sed 's/^/    | /'; }
  record "$name" $status $((SECONDS - start)) "$*"
}

skip() {
  printf '%-12s %7s  skipped: %s\n' "$1" - "$2"
  record "$1" skipped 0 "$2"
}

[ -n "$prebuilt" ] || stage build 2400 build
stage op_tests 90 gpu_tests cuda_gpu_tests
stage model_tests 60 gpu_tests cuda_gpu_model_tests
stage demo 60 demo
stage bench_ops 90 bench_ops
stage bench_shard 60 bench_shape pt8_30b_d8
stage bench_8b 150 bench_model one --max-batch 1 --requests 1 --input-len 128,4096 --output-len 2,128
stage bench_8b_128 150 bench_model batch --max-batch 128 --requests 128 --warmup 128 --input-len 128 --output-len 128
if [ $dry_run = 1 ] || python3 -c 'import torch, transformers' 2>/dev/null; then
  stage hf 120 hf
else
  skip hf "torch and transformers are not installed"
fi
if [ $dry_run = 1 ] || [ -x "$SANITIZER" ]; then
  stage memcheck 90 checker memcheck
  stage racecheck 90 checker racecheck
else
  skip memcheck "no compute-sanitizer here"
  skip racecheck "no compute-sanitizer here"
fi
deadline=$((SECONDS + 30))
stage report 30 report

[ $dry_run = 0 ] || exit 0
[ ! -s "$out/summary.md" ] || { echo; cat "$out/summary.md"; }
[ ${#failed[@]} = 0 ] || { echo "gpu_check: failed: ${failed[*]} (logs in $out/log)"; exit 1; }
echo "gpu_check: every stage passed; $out/cuda.json"
