// The products that the SIMD library does not have: whether this build contains them and this
// processor runs them.
#pragma once

namespace ptrt {

bool has_native_bfloat16();  // of bfloat16 pairs: AVX-512-BF16, or BFMMLA on Arm
bool has_native_int8();      // of int8 quads: AVX-512-VNNI, or USMMLA on Arm

}  // namespace ptrt
