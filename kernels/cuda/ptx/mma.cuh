// mma.sync and ldmatrix: one PTX instruction each on the device, an equivalent in the host
// emulation. Fragments are distributed over the lanes of a warp as PTX defines them; with group =
// lane / 4 and quad = lane % 4:
//   a (16×16, rows × k): a[0] row group, a[1] row group + 8, both k 2·quad, 2·quad + 1; a[2], a[3] the same
//                        rows, k + 8
//   b (16×8, k × columns): b[0] k 2·quad, 2·quad + 1 of column group; b[1] the same column, k + 8
//   d (16×8, rows × columns): d[0], d[1] row group, columns 2·quad, 2·quad + 1; d[2], d[3] row group + 8
#pragma once

#include <type_traits>

#include "kernels/cuda/base/dtypes.cuh"

#ifdef PTRT_CUDA_EMULATION
#include "cuda_emulation/tensor_core.h"
#include "kernels/base/scalar_types.h"
#endif

namespace ptrt {

// d += a · b with factors of type T, bf16 or f16, and float32 accumulators. All lanes of the warp
// call it.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                             const std::uint32_t (&b)[2]) {
#ifdef PTRT_CUDA_EMULATION
  constexpr auto kToFloat = std::is_same_v<T, f16> ? from_float16 : from_bfloat16;
  emulation::mma_m16n8k16(d, a, b, kToFloat);
#else
  if constexpr (std::is_same_v<T, f16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d = a · b, which begins a sum.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16_first(float (&d)[4], const std::uint32_t (&a)[4],
                                                   const std::uint32_t (&b)[2]) {
#ifdef PTRT_CUDA_EMULATION
  for (float& element : d) element = 0;
  mma_m16n8k16<T>(d, a, b);
#else
  if constexpr (std::is_same_v<T, f16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
#endif
}

// Loads four 8×8 matrices of 16-bit elements from shared memory. Lane 8·m + r passes the 16-byte
// aligned address of row r of matrix m; out[m] holds columns 2·quad, 2·quad + 1 of row group of
// matrix m.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&out)[4], const void* row) {
#ifdef PTRT_CUDA_EMULATION
  emulation::ldmatrix_x4(out, row, false);
#else
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
#endif
}

// The same, transposed: out[m] holds rows 2·quad, 2·quad + 1 of column group of matrix m.
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&out)[4], const void* row) {
#ifdef PTRT_CUDA_EMULATION
  emulation::ldmatrix_x4(out, row, true);
#else
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
#endif
}

}  // namespace ptrt
