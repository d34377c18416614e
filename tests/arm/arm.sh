#!/usr/bin/env bash
# arm.sh PTRT: compiles program and tests for 64-bit Arm in a throw-away Debian 12 and runs them there, emulated by qemu:
# the unit tests, on every instruction set, and the demo's prompts by one process and by two ranks, whose answers must be
# those of PTRT, the program of this host. Exit status 77 and a reason where that is not possible. Runs where
# PTRT_TEST_ARM asks for it: it takes root and a gigabyte of packages, with 1 half an hour, and with `short` a third of
# that: of the unit tests only those of matrix products, whose code is Arm's own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../packaging/throw_away.sh"
source=$(realpath "$here/../..") ptrt=$(realpath "$1")

case ${PTRT_TEST_ARM:-0} in
  1) suites=(kernels ops model_io runtime launch) tests='*' ;;
  short) suites=(ops) tests='*Linear*' ;;
  0) skip "not asked for (PTRT_TEST_ARM=1, or short)" ;;
  *) echo "arm: PTRT_TEST_ARM is $PTRT_TEST_ARM, expected 0, 1 or short"; exit 1 ;;
esac
can_be_made
make_root
mkdir "$root/source"
mount --bind "$source" "$root/source" && mount -o remount,bind,ro "$root/source" || skip "not permitted to mount in a chroot"
reach_archive
inside /source/scripts/install_deps.sh arm64 >"$work/log" 2>&1 || { tail -n 20 "$work/log"; exit 1; }

inside cmake -S /source -B /build -DCMAKE_TOOLCHAIN_FILE=/source/scripts/cmake/aarch64.cmake >"$work/log" 2>&1 ||
  { cat "$work/log"; exit 1; }
inside cmake --build /build --parallel "${JOBS:-2}" --target ptrt "${suites[@]/%/_tests}" >"$work/log" 2>&1 || { tail -n 50 "$work/log"; exit 1; }

# emulated PROGRAM…: on a processor with all that the emulation knows, BF16 and I8MM among it.
emulated() {
  inside qemu-aarch64-static -cpu max "$@"
}
# Left out: a test that limits the address space, which qemu has its own use for.
for suite in "${suites[@]}"; do
  echo "$suite:"
  emulated "/build/${suite}_tests" --gtest_brief=1 --gtest_filter="$tests-FileMaps.ThatCannotBeAreReadInstead" 2>"$work/log" || { tail -n 50 "$work/log"; exit 1; }
done

demo=examples/demo
answers() {
  python3 "$source/scripts/show_results.py" "$source/$demo/prompts.jsonl" "$1"
}
"$ptrt" generate "$source/$demo/demo.h5" "$source/$demo/prompts.jsonl" -o "$work/host.jsonl" --quiet
emulated /build/ptrt generate /source/$demo/demo.h5 /source/$demo/prompts.jsonl -o /tmp/one.jsonl 2>"$root/tmp/line"
grep -o 'NEON+BF16' "$root/tmp/line" || { cat "$root/tmp/line"; echo "arm: the line of the run does not name NEON+BF16"; exit 1; }
emulated /usr/bin/mpirun -n 2 --oversubscribe --bind-to none qemu-aarch64-static -cpu max /build/ptrt generate \
  /source/$demo/demo.h5 /source/$demo/prompts.jsonl -o /tmp/two.jsonl --quiet
cmp "$root/tmp/one.jsonl" "$root/tmp/two.jsonl"
diff <(answers "$work/host.jsonl") <(answers "$root/tmp/one.jsonl")
answers "$root/tmp/one.jsonl"
echo "arm: passed"
