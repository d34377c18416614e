#!/usr/bin/env bash
# bare_debian.sh BUILD_DIR: installs the Debian package, with its dependencies, in a bare Debian 12 that debootstrap makes
# in a throw-away folder, and runs the program there: --version, the demo, and two ranks under mpirun. Exit status 77 and
# a reason where that is not possible: it is a skipped test then. Runs where PTRT_TEST_BARE_DEBIAN=1 asks for it: it
# takes minutes, root and some hundred megabytes of packages.
set -euo pipefail

skip() {
  echo "bare_debian: skipped: $1"
  exit 77
}
build=$(realpath "$1")
[ "${PTRT_TEST_BARE_DEBIAN:-0}" = 1 ] || skip "not asked for (PTRT_TEST_BARE_DEBIAN=1)"
[ "$(id -u)" = 0 ] || skip "needs root"
grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release || skip "this host is not Debian 12"
for tool in debootstrap dpkg-shlibdeps file chroot; do
  command -v "$tool" >/dev/null || skip "no $tool"
done
# The archive that apt uses here.
mirror=$(grep -rhosE '^(URIs: |deb (\[[^]]*\] )?)https?://[^ ]*/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d |
  grep -oE 'https?://[^ ]*' | head -n 1 || true)
[ -n "$mirror" ] || skip "apt's sources name no Debian archive"

work=$(mktemp -d)
clean() {
  umount "$work/root/proc" "$work/root/dev/shm" 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap clean EXIT

(cd "$build" && cpack -G DEB -D CPACK_COMPONENTS_ALL=program -B "$work" --config CPackConfig.cmake >"$work/log" 2>&1) || { cat "$work/log"; exit 1; }
cache=${PTRT_DEBOOTSTRAP_CACHE:-}  # a folder that keeps the archive's packages between runs
debootstrap ${cache:+--cache-dir="$cache"} --variant=minbase bookworm "$work/root" "$mirror" >"$work/log" 2>&1 ||
  { tail -n 3 "$work/log"; skip "debootstrap found no archive at $mirror"; }

root=$work/root
echo 'force-unsafe-io' >"$root/etc/dpkg/dpkg.cfg.d/throw-away"
cp /etc/resolv.conf "$root/etc/"
cp "$work"/ptrt_*.deb "$root/tmp/ptrt.deb"
mkdir -p "$root/dev/shm"
mount -t proc proc "$root/proc" && mount -t tmpfs tmpfs "$root/dev/shm" || skip "not permitted to mount in a chroot"
mapfile -t proxies < <(env | grep -iE '^(https?|no)_proxy=' || true)
cp /etc/apt/apt.conf.d/*proxy* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true
inside() {
  env -i "${proxies[@]}" PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive OMPI_ALLOW_RUN_AS_ROOT=1 \
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 chroot "$root" "$@"
}
inside apt-get update -qq || skip "apt does not reach $mirror from the chroot"
inside apt-get install -y -qq --no-install-recommends /tmp/ptrt.deb python3 >"$work/log" 2>&1 ||
  { tail -n 20 "$work/log"; exit 1; }

inside ptrt --version
demo=/usr/share/ptrt/examples/demo
inside ptrt generate $demo/demo.h5 $demo/prompts.jsonl -o /tmp/one.jsonl 2>/dev/null
inside mpirun -n 2 --oversubscribe --bind-to none ptrt generate $demo/demo.h5 $demo/prompts.jsonl -o /tmp/two.jsonl 2>/dev/null
cmp "$root/tmp/one.jsonl" "$root/tmp/two.jsonl"
inside python3 /usr/share/ptrt/scripts/show_results.py $demo/prompts.jsonl /tmp/two.jsonl | tee "$work/shown"
grep -qE '^  What is 40 \+ 17\? +57$' "$work/shown"
echo "bare_debian: passed"
