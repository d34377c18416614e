// For processors and compilers without such instructions.
#include "kernels/base/error.h"
#include "kernels/cpu/matmul/matmul_native.h"

namespace ptrt {

void multiply_native_bfloat16(const MatmulBlock&) {
  throw_failure("internal error: no products of bfloat16 pairs in this build");
}

bool takes_pairs_apart(std::int64_t /*rows*/) {
  return false;
}

void multiply_pairs_apart(const MatmulBlock& /*block*/) {
  throw_failure("internal error: no products of bfloat16 pairs in this build");
}

void multiply_native_int8(const MatmulBlock&) {
  throw_failure("internal error: no products of int8 quads in this build");
}

}  // namespace ptrt
