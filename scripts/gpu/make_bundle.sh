#!/usr/bin/env bash
# make_bundle.sh BUILD_DIR BUNDLE_DIR: packs the programs that gpu_check.sh runs and their shared libraries, for a machine
# without packages. It leaves out glibc, which must be at least as new on that machine, the GPU's driver, and CUDA's
# large libraries, which the toolkit there has. BUNDLE_DIR/run PROGRAM ARGUMENT… starts a program. A BUNDLE_DIR that ends
# in .tar.gz becomes an archive.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1 target=$2
programs=(ptrt libptrt_cuda.so cuda_gpu_tests cuda_gpu_model_tests bench_cuda)
for program in "${programs[@]}"; do
  [ -e "$build/$program" ] || {
    echo "gpu_check: no $build/$program; configure with -DPTRT_BUILD_PERF=ON where nvcc is, and build" >&2
    exit 2
  }
done
[ ! -e "$target" ] || { echo "gpu_check: $target already exists" >&2; exit 2; }
bundle=$target
if [[ $target == *.tar.gz ]]; then
  bundle=$(mktemp -d)
  trap 'rm -rf "$bundle"' EXIT
fi
mkdir -p "$bundle/bin" "$bundle/lib"
for program in "${programs[@]}"; do
  cp "$build/$program" "$bundle/bin/"
  strip "$bundle/bin/$program"
done

left_out='^(ld-linux.*|linux-vdso.*|lib(c|m|dl|rt|pthread|resolv|util|anl|nss_.*)|libcuda|libcublas(Lt)?|libnccl|libnvidia-.*)\.so'
ldd "${programs[@]/#/$build/}" | awk '$2 == "=>" { print $1, $3 }' | sort -u | while read -r name path; do
  [[ $name =~ $left_out ]] && continue
  [ -e "$path" ] || { echo "gpu_check: $name is missing here too" >&2; exit 1; }
  cp -L "$path" "$bundle/lib/$name"
done
git describe --always --abbrev=40 --dirty --exclude '*' >"$bundle/COMMIT" 2>/dev/null || echo unknown >"$bundle/COMMIT"

cat >"$bundle/run" <<'RUN'
#!/bin/bash
# run PROGRAM ARGUMENT…, or run --missing. CUDA's libraries come from the toolkit or from its Python packages.
here=${BASH_SOURCE[0]%/*}
libraries=$here/lib
wanted=(WANTED)
for folder in "${CUDA_HOME:-/usr/local/cuda}"/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
  /opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib /usr/local/lib/python3*/*-packages/nvidia/*/lib; do
  for library in "${wanted[@]}"; do
    [ ! -e "$folder/$library" ] || { libraries+=:$folder; break; }
  done
done
export PTRT_PLUGIN_DIR=$here/bin LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
if [ "$1" = --missing ]; then  # prints the libraries that are not found; status 0 if there are none
  missing=$(ldd "$here"/bin/* | grep 'not found' | sort -u)
  # No program is linked with NCCL. The loader itself is asked: LD_LIBRARY_PATH, then the system's folders.
  nccl=libnccl.so.2
  LD_PRELOAD=$nccl /bin/true 2>&1 | grep -q "$nccl" && missing+=${missing:+$'\n'}$'\t'"$nccl => not found"
  [ -z "$missing" ] || echo "$missing"
  [ -z "$missing" ]
  exit
fi
exec "$here/bin/$1" "${@:2}"
RUN
# CUDA's large libraries that the programs need; NCCL is loaded at run time.
wanted="libnccl.so.2 "$(for program in "${programs[@]}"; do readelf -d "$bundle/bin/$program"; done |
  sed -nE 's/.*NEEDED.*\[(lib(cublas(Lt)?)\.so[^]]*)\].*/\1/p' | sort -u | tr '\n' ' ')
sed -i "s/WANTED/$wanted/" "$bundle/run"
chmod +x "$bundle/run"
[ "$bundle" = "$target" ] || tar -czf "$target" -C "$bundle" .
echo "gpu_check: $target, $(du -sh "$target" | cut -f1)"
