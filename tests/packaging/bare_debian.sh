#!/usr/bin/env bash
# bare_debian.sh BUILD_DIR: installs the Debian package, with its dependencies, in a bare Debian 12 that debootstrap makes
# in a throw-away folder, and runs the program there: --version, the demo, and two ranks under mpirun. Exit status 77 and
# a reason where that is not possible: it is a skipped test then. Runs where PTRT_TEST_BARE_DEBIAN=1 asks for it: it
# takes minutes, root and some hundred megabytes of packages.
set -euo pipefail
. "$(dirname "$0")/throw_away.sh"

build=$(realpath "$1")
[ "${PTRT_TEST_BARE_DEBIAN:-0}" = 1 ] || skip "not asked for (PTRT_TEST_BARE_DEBIAN=1)"
can_be_made dpkg-shlibdeps file
(cd "$build" && cpack -G DEB -D CPACK_COMPONENTS_ALL=program -B "$work" --config CPackConfig.cmake >"$work/log" 2>&1) || { cat "$work/log"; exit 1; }
make_root
cp "$work"/ptrt_*.deb "$root/tmp/ptrt.deb"
reach_archive
install /tmp/ptrt.deb python3

inside ptrt --version
demo=/usr/share/ptrt/examples/demo
inside ptrt generate $demo/demo.h5 $demo/prompts.jsonl -o /tmp/one.jsonl 2>/dev/null
inside mpirun -n 2 --oversubscribe --bind-to none ptrt generate $demo/demo.h5 $demo/prompts.jsonl -o /tmp/two.jsonl 2>/dev/null
cmp "$root/tmp/one.jsonl" "$root/tmp/two.jsonl"
inside python3 /usr/share/ptrt/scripts/show_results.py $demo/prompts.jsonl /tmp/two.jsonl | tee "$work/shown"
grep -qE '^  What is 40 \+ 17\? +57$' "$work/shown"
echo "bare_debian: passed"
