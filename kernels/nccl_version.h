// Versions of NCCL as ncclGetVersion() numbers them: 22809 for 2.28.9.
#pragma once

namespace ptrt {

// Whether NCCL's kernels on symmetric memory wait for the kernel before them in the stream. Those of 2.28.0 to 2.30.6
// are launched so that they may overlap with it, and do not wait: they may send what is not written yet. docs/CUDA.md
// has the places in NCCL's source.
constexpr bool nccl_waits_for_kernels(int version) {
  return version < 22800 || version >= 23007;
}

}  // namespace ptrt
