# A bare Debian 12 that debootstrap makes in a throw-away folder, for scripts that source this. They end as skipped tests,
# with status 77 and a reason, where that is not possible. $work is the folder, removed at the end; $root the Debian in it.

skip() {
  echo "$(basename "$0" .sh): skipped: $1"
  exit 77
}

# What is mounted and cannot be unmounted stays, and so does the folder: the sources may be mounted in it.
clean_up() {
  for mounted in proc dev/shm source; do umount "$root/$mounted" 2>/dev/null || true; done
  ! grep -qF " $root/" /proc/self/mounts || { echo "$work is still mounted and left there" >&2; return; }
  rm -rf --one-file-system "$work"
}

# can_be_made TOOLS…
can_be_made() {
  [ "$(id -u)" = 0 ] || skip "needs root"
  grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release || skip "this host is not Debian 12"
  for tool in debootstrap chroot "$@"; do
    command -v "$tool" >/dev/null || skip "no $tool"
  done
  # The archive that apt uses here.
  mirror=$(grep -rhosE '^(URIs: |deb (\[[^]]*\] )?)https?://[^ ]*/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d |
    grep -oE 'https?://[^ ]*' | head -n 1 || true)
  [ -n "$mirror" ] || skip "apt's sources name no Debian archive"
  work=$(mktemp -d)
  root=$work/root
  trap clean_up EXIT
}

make_root() {
  local cache=${PTRT_DEBOOTSTRAP_CACHE:-}  # a folder that keeps the archive's packages between runs
  debootstrap ${cache:+--cache-dir="$cache"} --variant=minbase bookworm "$root" "$mirror" >"$work/log" 2>&1 ||
    { tail -n 3 "$work/log"; skip "debootstrap found no archive at $mirror"; }
  echo 'force-unsafe-io' >"$root/etc/dpkg/dpkg.cfg.d/throw-away"
  cp /etc/resolv.conf "$root/etc/"
  mkdir -p "$root/dev/shm"
  mount -t proc proc "$root/proc" && mount -t tmpfs tmpfs "$root/dev/shm" || skip "not permitted to mount in a chroot"
  mapfile -t proxies < <(env | grep -iE '^(https?|no)_proxy=' || true)
  cp /etc/apt/apt.conf.d/*proxy* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true
}

inside() {
  env -i "${proxies[@]}" PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive OMPI_ALLOW_RUN_AS_ROOT=1 \
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 chroot "$root" "$@"
}

reach_archive() {
  inside apt-get update -qq || skip "apt does not reach $mirror from the chroot"
}

# install PACKAGES…
install() {
  inside apt-get install -y -qq --no-install-recommends "$@" >"$work/log" 2>&1 || { tail -n 20 "$work/log"; exit 1; }
}
