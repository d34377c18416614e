#!/usr/bin/env bash
# Installs the Debian 12 packages that ptrt is built from and, unless told `program`, tested and packaged with; does
# nothing when all are there. INSTALL_DEPS=0 only checks (other distributions, no root: install the same things your way).
# Told `arm64`, those that cross-compiling for 64-bit Arm takes (scripts/cmake/aarch64.cmake), and an emulation that runs
# what was compiled: for a container of its own, since Debian's Open MPI cannot be there for two architectures at once.
set -euo pipefail

packages=(
  g++ cmake make pkg-config                      # build
  libopenmpi-dev openmpi-bin                     # ranks
  libhdf5-dev                                    # model files
  libcli11-dev nlohmann-json3-dev libfmt-dev     # command line, JSON, text
  libhwy-dev libhwloc-dev                        # SIMD, cores of the host
  libisal-dev libxxhash-dev                      # checksums, digests
  zlib1g-dev libzstd-dev                         # compressed requests and results
  libsentencepiece-dev libicu-dev libonig-dev    # tokenizers
  python3 python3-jinja2                         # chat templates, the demo's answers
)
if [ "${1:-}" != program ]; then
  packages+=(
    libgtest-dev libboost-context-dev python3-numpy python3-h5py  # tests
    dpkg-dev file                                # make deb
  )
fi
if [ "${1:-}" = arm64 ]; then
  for i in "${!packages[@]}"; do
    case ${packages[i]} in
      libcli11-dev | nlohmann-json3-dev) ;;  # the same files for every processor
      lib* | zlib* | openmpi-bin) packages[i]+=:arm64 ;;
      python3-h5py) unset "packages[i]" ;;  # comes with Open MPI of this host's architecture
    esac
  done
  packages+=(g++-aarch64-linux-gnu qemu-user-static)
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "${INSTALL_DEPS:-1}" = 0 ]; then
  echo "install_deps: not installed (INSTALL_DEPS=0): ${missing[*]}" >&2
  exit 0
fi
sudo=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "install_deps: needs root or sudo to install: ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
echo "install_deps: installing ${missing[*]}"
[ "${1:-}" != arm64 ] || "${sudo[@]}" dpkg --add-architecture arm64
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
